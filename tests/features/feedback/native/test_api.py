"""/api/v1/feedback as clients see it."""

from __future__ import annotations

from luthier.core.records.traffic import Exchange
from luthier.features.traffic import service as traffic

PLACE = "/api/v1/feedback"


def asked(home, number: int = 1, project: str = "default") -> str:  # type: ignore[no-untyped-def]
    messages = ({"role": "user", "content": "Question?"},)
    exchange = Exchange(
        exchange_id=f"chatcmpl-{number}", project_id=project, at=1e9, model="m", messages=messages, answer="Answer."
    )
    traffic.record(home, exchange)
    return exchange.exchange_id


def test_said_again_replaced_and_listed(visitor, home) -> None:  # type: ignore[no-untyped-def]
    one, client = asked(home), visitor("infer", "read")
    body = {"exchange_id": one, "thumb": "up", "author": "u1"}
    first = client.post(PLACE, json=body)
    assert (first.status_code, first.json()["outcome"], first.json()["object"]) == (200, "new", "feedback")
    again = client.post(PLACE, json=body)
    assert again.json() == first.json() | {"outcome": "same"}
    other = client.post(PLACE, json=body | {"thumb": "down", "correction": "Better."}).json()
    assert (other["id"], other["outcome"]) == (first.json()["id"], "replaced")
    assert other["waits_for_review"]
    assert other["note"] == ""
    listed = client.get(PLACE).json()["data"]
    assert [(said["exchange_id"], said["thumb"], said["correction"]) for said in listed] == [(one, "down", "Better.")]
    assert client.get(PLACE, params={"model": "none"}).json()["data"] == []


def test_unknown_ids_are_404_and_leave_nothing(visitor, home) -> None:  # type: ignore[no-untyped-def]
    home.access.add_project("proj-b", "b")
    client = visitor("infer", "read")
    for unknown in ("chatcmpl-none", "x\u0000y", "../../x", asked(home, project="proj-b")):
        assert client.post(PLACE, json={"exchange_id": unknown, "thumb": "up"}).status_code == 404
    assert client.get(PLACE).json()["data"] == []


def test_what_is_wrong_is_told(visitor, home) -> None:  # type: ignore[no-untyped-def]
    one, client = asked(home), visitor("infer")
    for body in (
        {},
        {"exchange_id": one},
        {"exchange_id": one, "thumb": "sideways"},
        {"exchange_id": one, "score": 1.5},
        {"exchange_id": one, "score": "high"},
        {"exchange_id": one, "comment": "only this"},
        {"exchange_id": one, "thumb": "up", "more": 1},
        {"exchange_id": one, "correction": "x" * 100_001},
        {"exchange_id": "x" * 129, "thumb": "up"},
    ):
        answer = client.post(PLACE, json=body)
        assert answer.status_code == 400, body
        assert answer.json()["error"]["message"]
    assert client.get(PLACE).status_code == 403, "who may only ask does not read what others said"
    assert visitor("read").post(PLACE, json={"exchange_id": one, "thumb": "up"}).status_code == 403
    assert visitor().post(PLACE, json={"exchange_id": one, "thumb": "up"}).status_code == 401


def test_a_thumb_down_is_asked_what_it_should_have_been(visitor, home) -> None:  # type: ignore[no-untyped-def]
    one, client = asked(home), visitor("infer")
    told = client.post(PLACE, json={"exchange_id": one, "thumb": "down"}).json()
    assert told["note"].startswith("what should it have said?")
    assert not told["waits_for_review"]
    told = client.post(PLACE, json={"exchange_id": one, "thumb": "down", "correction": "Better."}).json()
    assert (told["note"], told["waits_for_review"]) == ("", True)
    assert client.post(PLACE, json={"exchange_id": one, "thumb": "up"}).json()["note"] == ""
