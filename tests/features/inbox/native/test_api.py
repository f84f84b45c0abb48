"""/api/v1/inbox as clients see it."""

from __future__ import annotations

from tests.features.inbox.service.test_service import annotated, correct, member

from luthier.features.inbox import service as inbox
from luthier.platform.auth.service import create_project
from luthier.platform.notifications import mails

PLACE = "/api/v1/inbox"


def test_entries_are_listed_assigned_and_settled(visitor, home) -> None:  # type: ignore[no-untyped-def]
    correct(home)
    member(home, "Ben", "trainer")
    client = visitor("read", "train")
    (entry,) = client.get(PLACE).json()["data"]
    assert (entry["kind"], entry["about"], entry["status"], entry["assignee"]) == ("review", "shop-bot", "open", None)
    made = client.post(f"{PLACE}/{entry['id']}/assign", json={"assignee": "Ben", "due": "2999-12-31"})
    assert made.status_code == 200
    assert (made.json()["assignee"], made.json()["due"], made.json()["overdue"]) == ("Ben", "2999-12-31", False)
    assert client.get(PLACE, params={"assignee": "Ben"}).json()["data"] == [made.json()]
    assert client.get(PLACE, params={"assignee": "Cleo"}).json()["data"] == []
    snoozed = client.post(f"{PLACE}/{entry['id']}/snooze", json={"seconds": 60}).json()
    assert (snoozed["status"], snoozed["snoozed_until"] is None) == ("snoozed", False)
    assert client.post(f"{PLACE}/{entry['id']}/reopen").json()["status"] == "open"
    done = client.post(f"{PLACE}/{entry['id']}/done").json()
    assert (done["status"], done["done_by"]) == ("done", "k")
    assert client.post(f"{PLACE}/{entry['id']}/done").status_code == 409
    assert client.get(PLACE, params={"show": "done"}).json()["data"] == [done]


def test_scopes_and_projects(visitor, home) -> None:  # type: ignore[no-untyped-def]
    correct(home)
    reader = visitor("read")
    (entry,) = reader.get(PLACE).json()["data"]
    place = f"{PLACE}/{entry['id']}"
    assert visitor("infer").get(PLACE).status_code == 403
    assert reader.post(f"{place}/assign", json={"assignee": None}).status_code == 403
    for deed in ("done", "reopen", "snooze"):
        assert reader.post(f"{place}/{deed}", json={"seconds": 5}).status_code == 403, "a key is given nothing"
    create_project(home, "mine")
    other = visitor("admin", project="mine")
    assert other.get(PLACE).json()["data"] == []
    for deed, body in (("done", None), ("reopen", None), ("snooze", {"seconds": 5}), ("assign", {"assignee": None})):
        assert other.post(f"{place}/{deed}", json=body).status_code == 404, deed
    for body in ({"assignee": "x" * 101}, {}, {"assignee": "Ben", "due": "soon"}, {"assignee": "Ben", "more": 1}):
        assert visitor("admin").post(f"{place}/assign", json=body).status_code == 400, body


def test_a_dataset_is_given_to_an_annotator(visitor, home) -> None:  # type: ignore[no-untyped-def]
    dataset_id = annotated(home)
    member(home, "Ben", "trainer")
    made = visitor("train").post(f"{PLACE}/annotations", json={"dataset": dataset_id, "assignee": "Ben"})
    assert made.status_code == 201
    assert (made.json()["kind"], made.json()["assignee"]) == ("annotate", "Ben")
    create_project(home, "mine")
    other = visitor("train", project="mine")
    assert other.post(f"{PLACE}/annotations", json={"dataset": dataset_id, "assignee": "Ben"}).status_code == 404


def test_the_mail_about_an_assignment_leads_to_the_server_of_the_request(visitor, home) -> None:  # type: ignore[no-untyped-def]
    correct(home)
    inbox.set_mail_address(home, member(home, "Ben", "trainer"), "ben@example.org")
    client = visitor("read", "train")
    (entry,) = client.get(PLACE).json()["data"]
    assert client.post(f"{PLACE}/{entry['id']}/assign", json={"assignee": "Ben"}).status_code == 200
    (mail,) = mails.list_mails(home, "default")
    assert mail.text.split()[-1] == f"{str(client.base_url).rstrip('/')}/review?model=shop-bot"
