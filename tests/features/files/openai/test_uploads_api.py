"""Files in parts over HTTP: whole or not at all, and nothing lost between parts."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update
from tests.features.files.openai.clients import kept_files, signed_in

from luthier.platform.db.tables import uploads
from luthier.platform.files.service import sweep_files
from luthier.platform.files.uploads import MAX_PART_BYTES
from luthier.platform.home.context import Context

PARTS = [b"first ", b"second ", b"third"]
WHOLE = b"".join(PARTS)


def begin(client: TestClient, **changes: Any) -> dict[str, Any]:
    body = {"bytes": len(WHOLE), "filename": "a/rows.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    answer = client.post("/v1/uploads", json=body | changes)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def add(client: TestClient, upload_id: str, content: bytes) -> str:
    answer = client.post(f"/v1/uploads/{upload_id}/parts", files={"data": content})
    assert answer.status_code == 200, answer.text
    part = answer.json()
    assert (part["object"], part["upload_id"]) == ("upload.part", upload_id)
    return str(part["id"])


def finish(client: TestClient, upload_id: str, part_ids: list[str], md5: str | None = None) -> Any:
    body = {"part_ids": part_ids} | ({} if md5 is None else {"md5": md5})
    return client.post(f"/v1/uploads/{upload_id}/complete", json=body)


def refused(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


def test_parts_become_a_file_in_the_order_that_is_asked_for(client: TestClient, context: Context) -> None:
    upload = begin(client, bytes=18.0, expires_after={"anchor": "created_at", "seconds": 7200})
    assert (upload["object"], upload["status"], upload["file"]) == ("upload", "pending", None)
    assert (upload["filename"], upload["expires_at"] - upload["created_at"]) == ("rows.jsonl", 3600)
    ids = [add(client, upload["id"], part) for part in reversed(PARTS)]
    answer = finish(client, upload["id"], ids[::-1], hashlib.md5(WHOLE).hexdigest().upper())
    done = answer.json()
    assert (answer.status_code, done["status"], done["id"]) == (200, "completed", upload["id"])
    file = done["file"]
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(WHOLE), "rows.jsonl", "fine-tune")
    assert file["expires_at"] - file["created_at"] in (7200, 7201)
    assert client.get(f"/v1/files/{file['id']}/content").content == WHOLE
    assert len(kept_files(context)) == 1
    assert finish(client, upload["id"], ids[::-1]).json() == done  # as when the first answer was lost


def test_what_was_sent_survives_a_restart_and_may_be_sent_twice(client: TestClient, context: Context) -> None:
    upload = begin(client)
    first = add(client, upload["id"], PARTS[0])
    add(client, upload["id"], PARTS[0])
    context.close()
    with Context.open(context.home) as again, contextmanager(signed_in)(again, "default", "train", "read") as late:
        ids = [first, add(late, upload["id"], PARTS[1]), add(late, upload["id"], PARTS[2])]
        file = finish(late, upload["id"], ids).json()["file"]
        assert late.get(f"/v1/files/{file['id']}/content").content == WHOLE


def test_one_of_many_that_complete_at_once_makes_the_file(client: TestClient) -> None:
    upload = begin(client)
    ids = [add(client, upload["id"], part) for part in PARTS]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: finish(client, upload["id"], ids), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.json()["file"]["id"] for answer in answers}) == 1
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_what_does_not_fit_together_is_refused_and_may_be_mended(client: TestClient) -> None:
    upload = begin(client)
    ids = [add(client, upload["id"], part) for part in PARTS]
    assert "13 bytes together" in refused(finish(client, upload["id"], ids[:2]), 400)
    assert "names a part twice" in refused(finish(client, upload["id"], [ids[0], ids[0]]), 400)
    assert "is not of upload" in refused(finish(client, upload["id"], [*ids, "part-20261125-093000-1f2e3d"]), 400)
    assert "MD5" in refused(finish(client, upload["id"], ids, "0" * 32), 400)
    refused(finish(client, upload["id"], []), 400)
    refused(finish(client, upload["id"], ids, "md5"), 400)
    assert finish(client, upload["id"], ids).status_code == 200


def test_cancelled(client: TestClient, context: Context) -> None:
    upload = begin(client)
    ids = [add(client, upload["id"], part) for part in PARTS]
    answer = client.post(f"/v1/uploads/{upload['id']}/cancel")
    assert answer.json() == upload | {"status": "cancelled"}
    assert kept_files(context) == []
    for again in (
        client.post(f"/v1/uploads/{upload['id']}/cancel"),
        client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": b"x"}),
        finish(client, upload["id"], ids),
    ):
        assert "is cancelled" in refused(again, 409)
        assert again.headers["x-should-retry"] == "false"


def test_after_an_hour_it_is_over(client: TestClient, context: Context) -> None:
    upload = begin(client)
    ids = [add(client, upload["id"], part) for part in PARTS]
    with context.database.write() as connection:
        connection.execute(update(uploads).values(expires_at=1.0))
    assert "is expired" in refused(finish(client, upload["id"], ids), 409)
    assert "is expired" in refused(client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": b"x"}), 409)
    sweep_files(context)
    assert kept_files(context) == []
    assert "is expired" in refused(client.post(f"/v1/uploads/{upload['id']}/cancel"), 409)


def test_another_project_sees_nothing(client: TestClient, stranger: TestClient) -> None:
    upload = begin(client)
    ids = [add(client, upload["id"], part) for part in PARTS]
    refused(stranger.post(f"/v1/uploads/{upload['id']}/parts", files={"data": b"x"}), 404)
    refused(stranger.post(f"/v1/uploads/{upload['id']}/cancel"), 404)
    refused(finish(stranger, upload["id"], ids), 404)
    refused(client.post("/v1/uploads/upload-1/cancel"), 404)
    theirs = begin(stranger)
    assert "is not of upload" in refused(finish(stranger, theirs["id"], ids), 400)
    assert finish(client, upload["id"], ids).status_code == 200


def test_parts_that_are_refused(client: TestClient, context: Context) -> None:
    upload = begin(client)
    assert "without bytes" in refused(client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": b""}), 400)
    answer = client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": b"x" * 100})
    assert "a part of 100 bytes" in refused(answer, 400)
    refused(client.post(f"/v1/uploads/{upload['id']}/parts", files={"file": b"x"}), 400)
    too_large = client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": bytes(MAX_PART_BYTES + 1)})
    refused(too_large, 413)
    for _ in range(2):
        add(client, upload["id"], WHOLE)
    assert "with 2 parts" in refused(client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": b"x"}), 400)
    assert len(kept_files(context)) == 1


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"bytes": 100_001}, 413),
        ({"bytes": 0}, 400),
        ({"bytes": "18"}, 400),
        ({"bytes": True}, 400),
        ({"bytes": 18.5}, 400),
        ({"filename": ""}, 400),
        ({"purpose": "fine-tune-results"}, 400),
        ({"mime_type": "text\x00"}, 400),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, 400),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, 400),
        ({"folder": "/etc"}, 400),
    ],
)
def test_uploads_that_cannot_begin(client: TestClient, changes: dict[str, Any], status: int) -> None:
    body = {"bytes": 18, "filename": "a", "mime_type": "text/jsonl", "purpose": "fine-tune"} | changes
    refused(client.post("/v1/uploads", json=body), status)
