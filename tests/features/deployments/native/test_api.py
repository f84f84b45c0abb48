"""/api/v1/deployments and /api/v1/usage as clients see them."""

from __future__ import annotations

from luthier.platform.auth.store import Use
from luthier.testing.records import add_run

PLACE = "/api/v1/deployments"


def test_deployed_tried_promoted_rolled_back_removed(visitor, home) -> None:  # type: ignore[no-untyped-def]
    a, b = add_run(home, "a"), add_run(home, "b")
    asked = visitor("train", "read")
    made = asked.post(PLACE, json={"name": "support", "target": a, "expected_revision": 0})
    assert made.status_code == 201
    assert made.json()["revision"]["shares"] == [{"target": a, "fraction": 1.0}]
    tried = asked.post(PLACE, json={"name": "support", "target": b, "canary": 0.25}).json()["revision"]
    assert (tried["number"], tried["canary"], tried["before"]) == (2, b, 1)
    assert tried["shares"] == [{"target": a, "fraction": 0.75}, {"target": b, "fraction": 0.25}]
    stale = asked.post(f"{PLACE}/support/promote", json={"expected_revision": 1})
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "conflict")
    assert asked.post(f"{PLACE}/support/promote").json()["revision"]["shares"][0]["target"] == b
    assert asked.post(f"{PLACE}/support/promote").status_code == 409
    back = asked.post(f"{PLACE}/support/rollback", json={"expected_revision": 3}).json()
    assert (back["revision"]["kind"], back["revision"]["number"]) == ("rollback", 4)
    shown = asked.get(f"{PLACE}/support").json()
    assert [one["number"] for one in shown["history"]] == [4, 3, 2, 1]
    listed = asked.get(PLACE).json()["data"]
    assert [(one["name"], one["history"], one["requests"]) for one in listed] == [("support", None, [])]
    assert visitor("infer").get("/v1/models").json()["data"][0]["id"] == "support"
    assert asked.delete(f"{PLACE}/support").json()["deleted"] is True
    assert asked.get(f"{PLACE}/support").status_code == 404


def test_a_split(visitor, home) -> None:  # type: ignore[no-untyped-def]
    a, b = add_run(home, "a"), add_run(home, "b")
    asked = visitor("admin")
    made = asked.post(PLACE, json={"name": "ab", "split": {a: 0.5, b: 0.5}}).json()
    assert [share["fraction"] for share in made["revision"]["shares"]] == [0.5, 0.5]
    won = asked.post(f"{PLACE}/ab/promote", json={"target": a}).json()
    assert won["revision"]["shares"] == [{"target": a, "fraction": 1.0}]


def test_what_is_wrong_is_told(visitor, home) -> None:  # type: ignore[no-untyped-def]
    a, running = add_run(home, "a"), add_run(home, "b", status="running")
    asked = visitor("admin")
    for status, body in (
        (400, {}),
        (400, {"name": "n"}),
        (400, {"name": "n", "target": a, "split": {a: 0.5, running: 0.5}}),
        (400, {"name": "n", "target": a, "canary": 0.5}),
        (400, {"name": "n", "target": a, "canary": 1}),
        (400, {"name": "n", "target": a, "more": 1}),
        (400, {"name": "ft:tiny", "target": a}),
        (400, {"name": "smollm2-135m-instruct", "target": a}),
        (404, {"name": "n", "target": "run-20261125-093000-000000"}),
        (404, {"name": "n", "target": "/etc"}),
        (404, {"name": "n", "target": str(home.home)}),
        (404, {"name": "n", "target": "ft:tiny:default::x"}),
        (409, {"name": "n", "target": running}),
    ):
        answer = asked.post(PLACE, json=body)
        assert answer.status_code == status, (body, answer.text)
        assert "expected" in answer.json()["error"]["message"] or status == 400
    assert visitor("read").post(PLACE, json={"name": "n", "target": a}).status_code == 403
    assert visitor("infer").get(PLACE).status_code == 403
    home.access.add_project("proj-b", "b")
    other = visitor("admin", project="b")
    assert other.post(PLACE, json={"name": "n", "target": a}).status_code == 404
    asked.post(PLACE, json={"name": "n", "target": a})
    for method, place in (("GET", ""), ("DELETE", ""), ("POST", "/promote"), ("POST", "/rollback")):
        assert other.request(method, f"{PLACE}/n{place}").status_code == 404
    assert other.get(PLACE).json()["data"] == []


def test_usage_is_the_projects_own(visitor, home) -> None:  # type: ignore[no-untyped-def]
    home.access.add_project("proj-b", "b")
    use = Use(
        project_id="default",
        key_id="key-1",
        model="support",
        target="run-x",
        num_prompt_tokens=10,
        num_new_tokens=4,
        cost_usd=0.5,
    )
    for one in (use, use, use.model_copy(update={"key_id": "", "model": "tiny", "target": "tiny", "cost_usd": None})):
        home.usage.add(one)
    rows = visitor("read").get("/api/v1/usage").json()["data"]
    assert [(row["model"], row["key_id"], row["num_requests"], row["cost_usd"]) for row in rows] == [
        ("support", "key-1", 2, 1.0),
        ("tiny", None, 1, None),
    ]
    assert (rows[0]["prompt_tokens"], rows[0]["completion_tokens"], rows[0]["target"]) == (20, 8, "run-x")
    assert len(visitor("read").get("/api/v1/usage?model=tiny&days=1").json()["data"]) == 1
    assert visitor("read", project="b").get("/api/v1/usage").json()["data"] == []
    assert visitor("infer").get("/api/v1/usage").status_code == 403
    assert visitor("read").get("/api/v1/usage?days=0").status_code == 400
