"""/api/v1/dataset-imports: who may import what, how far it is, and what it has made."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from tests.features.datasets.conftest import jsonl, qa, work_once
from tests.fixtures.questions import answers_in_this_process
from tests.hub_server import COMMIT, Hub

from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

PLACE = "/api/v1/dataset-imports"
Visitor = Callable[..., TestClient]


def test_rows_are_imported_followed_and_imported_again(home: Context, visitor: Visitor, qa_hub: Hub) -> None:
    asked = visitor("train", "read")
    body = {"address": "org/qa", "split": "test", "columns": {"prompt": "question", "completion": "answer"}}
    made, same = (asked.post(PLACE, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert made.status_code == 201, made.text
    assert (same.status_code, same.json()) == (201, made.json()), "a request that is sent again imports nothing more"
    document = made.json()
    assert (document["address"], document["status"], document["dataset_id"]) == ("hub:org/qa[test]", "queued", None)
    work_once(home)
    done = asked.get(f"{PLACE}/{document['job_id']}").json()
    assert (done["status"], done["version"], done["num_rows"], done["is_unchanged"]) == ("succeeded", 1, 2, False)
    assert (done["origin"]["revision"], done["origin"]["licence"]) == (COMMIT, "cc-by-4.0")
    assert done["progress"]["num_bytes"] == done["progress"]["total_bytes"] == len(qa_hub.files["test.jsonl"])
    assert asked.get(f"/v1/files/{done['file_id']}").json()["filename"] == "test.jsonl"
    again = asked.post(PLACE, json=body | {"dataset_id": done["dataset_id"]}).json()
    assert again["dataset_id"] == done["dataset_id"]
    work_once(home)
    assert asked.get(f"{PLACE}/{again['job_id']}").json()["is_unchanged"]
    qa_hub.files["test.jsonl"], qa_hub.commit = jsonl(qa(1)), "f" * 40
    newer = asked.post(PLACE, json=body | {"dataset_id": done["dataset_id"]}).json()
    work_once(home)
    assert asked.get(f"{PLACE}/{newer['job_id']}").json()["version"] == 2
    assert [entry.action for entry in home.audit_log.about("default", document["job_id"], limit=9)] == [
        "import.started"
    ]


def test_only_members_with_the_scope_import_and_only_their_own(home: Context, visitor: Visitor, qa_hub: Hub) -> None:
    asked, reader = visitor("train", "read"), visitor("read")
    assert reader.post(PLACE, json={"address": "org/qa"}).status_code == 403
    assert reader.post(f"{PLACE}/preview", json={"address": "org/qa"}).status_code == 403
    assert visitor().post(PLACE, json={"address": "org/qa"}).status_code == 401
    job_id = asked.post(PLACE, json={"address": "org/qa"}).json()["job_id"]
    assert reader.get(f"{PLACE}/{job_id}").json()["status"] == "queued"
    assert reader.post(f"{PLACE}/{job_id}/cancel").status_code == 403
    create_project(home, "support")
    other = visitor("train", "read", project="support")
    assert other.get(f"{PLACE}/{job_id}").status_code == 404
    assert other.post(f"{PLACE}/{job_id}/cancel").status_code == 404
    assert asked.post(f"{PLACE}/{job_id}/resume").status_code == 409
    assert asked.post(f"{PLACE}/{job_id}/cancel").json()["status"] == "cancelled"
    assert asked.post(f"{PLACE}/{job_id}/cancel").status_code == 409
    dataset = other.post(PLACE, json={"address": "org/qa", "dataset_id": "data-20261125-093000-1f2e3d"})
    assert dataset.status_code == 404


def test_a_failed_import_says_why_and_is_resumed(home: Context, visitor: Visitor, qa_hub: Hub) -> None:
    asked = visitor("train", "read")
    job_id = asked.post(PLACE, json={"address": "org/qa", "split": "validation"}).json()["job_id"]
    work_once(home)
    error = asked.get(f"{PLACE}/{job_id}").json()["error"]
    assert (error["came"], error["expected"]) == ("dataset org/qa has no split 'validation'", "one of: test, train")
    qa_hub.files["validation.jsonl"] = jsonl(qa(1))
    assert asked.post(f"{PLACE}/{job_id}/resume").json()["status"] == "queued"
    work_once(home)
    assert asked.get(f"{PLACE}/{job_id}").json()["num_rows"] == 1


@pytest.mark.parametrize(
    "body",
    [
        {"address": "file:///etc/passwd"},
        {"address": "http://169.254.169.254/latest/meta-data"},
        {"address": "s3://bucket/rows.jsonl"},
        {"address": "https://user:pw@example.org/a.csv"},
        {"address": "https://[/a.csv"},
        {"address": "https://example.org:99999/a.csv"},
        {"address": "https://example.org:port/a.csv"},
        {"address": f"org/{'q' * 1_996}"},
        {"address": f"hub:org/qa/{'c' * 1_989}", "split": "test"},
        {"address": "org/qa", "max_rows": 0},
        {"address": "org/qa", "max_rows": 3, "fraction": 0.5},
        {"address": "org/qa", "fraction": 1.5},
        {"address": "org/qa", "name": "a\nb"},
        {"address": "org/qa", "columns": {"promt": "question"}},
        {"address": "org/qa", "more": 1},
    ],
)
def test_what_cannot_be_imported_is_refused(home: Context, visitor: Visitor, body: dict[str, object]) -> None:
    assert visitor("train").post(PLACE, json=body).status_code == 400
    assert home.jobs.list() == []


def test_a_preview_shows_the_first_rows(visitor: Visitor, qa_hub: Hub) -> None:
    asked = visitor("train")
    with answers_in_this_process():
        found = asked.post(f"{PLACE}/preview", json={"address": "org/qa"}).json()
        missing = asked.post(f"{PLACE}/preview", json={"address": "org/qa", "split": "dev"})
    assert (found["columns"], len(found["rows"])) == (["question", "answer", "source"], 10)
    assert found["rows"][0]["cells"]["answer"]["text"] == "It is 0."
    assert missing.status_code == 404
    assert "one of: test, train" in missing.text
