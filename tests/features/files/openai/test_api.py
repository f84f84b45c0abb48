"""Files over HTTP: what comes in comes out, nobody sees another's, and nothing half is kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update
from tests.features.files.openai.clients import kept_files, signed_in

from luthier.platform.db.tables import files
from luthier.platform.files.service import add_file, get_file, local_path, safe_filename, sweep_files
from luthier.platform.files.store import UPLOAD_PURPOSES
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.server.api import create_app

ROWS = b'{"prompt": "a", "completion": "b"}\n' * 50
FORM = {"purpose": "fine-tune"}


def send(client: TestClient, content: bytes = ROWS, name: str = "rows.jsonl", **fields: str) -> dict[str, Any]:
    answer = client.post("/v1/files", files={"file": (name, content)}, data=FORM | fields)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_what_goes_in_comes_out(client: TestClient, context: Context) -> None:
    made = send(client)
    assert made == client.get(f"/v1/files/{made['id']}").json()
    assert made["object"] == "file"
    assert (made["bytes"], made["filename"], made["purpose"]) == (len(ROWS), "rows.jsonl", "fine-tune")
    assert (made["status"], made["expires_at"], made["status_details"]) == ("processed", None, None)
    assert isinstance(made["created_at"], int)
    answer = client.get(f"/v1/files/{made['id']}/content")
    assert answer.content == ROWS
    assert answer.headers["content-length"] == str(len(ROWS))
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''rows.jsonl"
    assert len(kept_files(context)) == 1
    file = get_file(context, "default", made["id"])
    assert file.sha256 == hashlib.sha256(ROWS).hexdigest()


def test_a_file_larger_than_a_piece(client: TestClient, context: Context) -> None:
    context.settings = Settings(home=context.home, max_file_bytes=10 << 20)
    content = bytes(range(256)) * 10_000 + b"\r\n--"
    made = send(client, content)
    assert client.get(f"/v1/files/{made['id']}/content").content == content


def test_an_upload_beyond_the_quota_of_the_project_is_refused(client: TestClient, context: Context) -> None:
    context.access.set_file_quota("default", 2 * len(ROWS))
    send(client)
    larger = client.post("/v1/files", files={"file": ("rows.jsonl", ROWS + b"\n")}, data=FORM)
    error = error_of(larger, 413)
    assert error["code"] == "file_quota_exceeded"
    assert all(part in error["message"] for part in ("; expected: at most ", "; what to do: delete files"))
    assert larger.headers["x-should-retry"] == "false"
    announced = {"bytes": len(ROWS) + 1, "filename": "a", "mime_type": "text/plain", "purpose": "fine-tune"}
    assert error_of(client.post("/v1/uploads", json=announced), 413)["code"] == "file_quota_exceeded"
    assert len(kept_files(context)) == 1
    send(client)
    # What says how long it is, is refused before any of it is read.
    full = client.post("/v1/files", content=b"no form", headers={"Content-Type": "text/plain"})
    assert error_of(full, 413)["code"] == "file_quota_exceeded"


@pytest.mark.parametrize("purpose", UPLOAD_PURPOSES)
def test_an_empty_file_is_refused_for_every_purpose(client: TestClient, context: Context, purpose: str) -> None:
    answer = client.post("/v1/files", files={"file": ("rows.jsonl", b"")}, data={"purpose": purpose})
    error = error_of(answer, 400)
    assert (error["code"], error["param"]) == ("empty_file", "file")
    assert error["message"].startswith("'rows.jsonl' is an empty file; expected: ")
    assert client.get("/v1/files").json()["data"] == []
    assert kept_files(context) == []


def test_deleting_one_of_the_same_content_leaves_the_other(client: TestClient, context: Context) -> None:
    first, second = send(client), send(client, name="again.jsonl")
    assert len(kept_files(context)) == 1
    answer = client.delete(f"/v1/files/{first['id']}")
    assert answer.json() == {"id": first["id"], "object": "file", "deleted": True}
    error_of(client.get(f"/v1/files/{first['id']}"), 404)
    error_of(client.delete(f"/v1/files/{first['id']}"), 404)
    assert client.get(f"/v1/files/{second['id']}/content").content == ROWS
    client.delete(f"/v1/files/{second['id']}")
    assert kept_files(context) == []
    assert client.get(f"/v1/files/{send(client)['id']}/content").content == ROWS


def test_another_project_sees_nothing(client: TestClient, stranger: TestClient) -> None:
    file_id = send(client)["id"]
    for answer in (
        stranger.get(f"/v1/files/{file_id}"),
        stranger.get(f"/v1/files/{file_id}/content"),
        stranger.delete(f"/v1/files/{file_id}"),
    ):
        error_of(answer, 404)
    assert stranger.get("/v1/files").json()["data"] == []
    error_of(stranger.get("/v1/files", params={"after": file_id}), 400)
    assert client.get(f"/v1/files/{file_id}").status_code == 200


def test_without_the_right_key_nothing_is_written(context: Context) -> None:
    for headers, status in (({}, 401), ({"Authorization": "Bearer sk-luthier-no"}, 401)):
        with TestClient(create_app(context), headers=headers) as client:
            error_of(client.post("/v1/files", files={"file": ("a", ROWS)}, data=FORM), status)
    for reader in signed_in(context, "default", "read"):
        error_of(reader.post("/v1/files", files={"file": ("a", ROWS)}, data=FORM), 403)
        error_of(reader.delete("/v1/files/file-20261125-093000-1f2e3d"), 403)
    for asker in signed_in(context, "default", "infer"):
        error_of(asker.get("/v1/files"), 403)
    assert not (context.home / "artifacts").exists()


def test_pages(client: TestClient) -> None:
    ids = [send(client, b"%d" % number, purpose="evals" if number % 2 else "fine-tune")["id"] for number in range(5)]
    whole = client.get("/v1/files").json()
    assert [file["id"] for file in whole["data"]] == ids[::-1]
    assert (whole["has_more"], whole["first_id"], whole["last_id"]) == (False, ids[4], ids[0])
    page = client.get("/v1/files", params={"limit": 2, "order": "asc", "after": ids[0]}).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[1:3], True)
    odd = client.get("/v1/files", params={"purpose": "evals"}).json()["data"]
    assert [file["id"] for file in odd] == [ids[3], ids[1]]
    error_of(client.get("/v1/files", params={"purpose": "\x00"}), 400)  # PostgreSQL holds no NUL
    client.delete(f"/v1/files/{ids[3]}")  # whoever deletes while walking goes on from what is no longer there
    rest = client.get("/v1/files", params={"after": ids[3]}).json()["data"]
    assert [file["id"] for file in rest] == ids[2::-1]
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"after": "file-20261125-093000-1f2e3d"}):
        assert error_of(client.get("/v1/files", params=wrong), 400)["param"] == next(iter(wrong))


@pytest.mark.parametrize("file_id", ["file-1", "..%2f..%2fetc", "file-20261125-093000-1f2e3d", "%00", "a" * 5000])
def test_ids_that_are_none(client: TestClient, file_id: str) -> None:
    error_of(client.get(f"/v1/files/{file_id}"), 404)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\rows.jsonl", "rows.jsonl"),
        ("..", "file"),
        ("", "file"),
        ("a\x00b\n.jsonl", "ab.jsonl"),
        ("训练 é.jsonl", "训练 é.jsonl"),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl"),
        ("." + "y" * 400, "." + "y" * 254),
    ],
)
def test_a_filename_is_a_name_alone(given: str, kept: str) -> None:
    assert safe_filename(given) == kept


def test_names_that_browsers_escape(client: TestClient) -> None:
    assert send(client, name='a "b" ü.jsonl')["filename"] == 'a "b" ü.jsonl'


def test_expiry(client: TestClient, context: Context) -> None:
    life = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = send(client, **life)
    assert made["expires_at"] in (made["created_at"] + 3600, made["created_at"] + 3601)
    with context.database.write() as connection:
        connection.execute(update(files).values(expires_at=1.0))
    error_of(client.get(f"/v1/files/{made['id']}"), 404)
    assert client.get("/v1/files").json()["data"] == []
    sweep_files(context)
    assert kept_files(context) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "fun"}, "purpose"),
        ({"purpose": "fine-tune-results"}, "purpose"),
        (FORM | {"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        (FORM | {"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        (FORM | {"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        (FORM | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after[seconds]"),
        (FORM | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 99}, "expires_after[seconds]"),
        (
            FORM | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 4500},
            "expires_after[seconds]",
        ),
        (
            FORM | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "0000003600999"},
            "expires_after[seconds]",
        ),
        (FORM | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "²"}, "expires_after[seconds]"),
        (FORM | {"path": "/etc"}, "path"),
        ({"purpose": "x" * 5000}, "purpose"),
        ({"purpose": ["fine-tune", "evals"]}, "purpose"),
    ],
)
def test_fields_that_are_wrong(client: TestClient, context: Context, fields: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/files", files={"file": ("rows.jsonl", ROWS)}, data=fields)
    assert error_of(answer, 400)["param"] == param
    assert kept_files(context) == []


def part(name: str, content: bytes, extra: str = "") -> bytes:
    head = f'--B\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + content + b"\r\n"


WHOLE = part("purpose", b"fine-tune") + part("file", ROWS, '; filename="a.jsonl"')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        WHOLE,
        WHOLE[:-100],
        part("purpose", b"fine-tune") + b"--B--\r\n",
        WHOLE + part("file", ROWS, '; filename="b"') + b"--B--\r\n",
        b'--B\r\nContent-Disposition: attachment; name="file"\r\n\r\nx\r\n--B--\r\n',
        b"--B\r\n\r\nx\r\n--B--\r\n",
        b"--B\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--B--\r\n",
        b"no boundary at all",
        part("purpose", b"fine-tune") + b"--C--\r\n",
        WHOLE + part("x" * 5000, b"") + b"--B--\r\n",
    ],
)
def test_bodies_that_are_none(client: TestClient, context: Context, body: bytes) -> None:
    answer = client.post("/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=B"})
    error_of(answer, 400)
    assert kept_files(context) == []


def test_the_same_body_with_its_end_is_one(client: TestClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    made = client.post("/v1/files", content=WHOLE + b"--B--\r\n", headers=headers).json()
    assert (made["filename"], made["bytes"]) == ("a.jsonl", len(ROWS))
    pieces = (WHOLE[at : at + 7] for at in range(0, len(WHOLE), 7))
    answer = client.post("/v1/files", content=(piece for piece in [*pieces, b"--B--\r\n"]), headers=headers)
    assert answer.json()["bytes"] == len(ROWS)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "text/plain; boundary=B", "é", ""])
def test_other_kinds_of_bodies(client: TestClient, kind: str) -> None:
    answer = client.post("/v1/files", content=b"{}", headers={"Content-Type": kind.encode()})
    assert error_of(answer, 400)["code"] == "invalid_content_type"


def test_a_file_that_is_too_large(client: TestClient, context: Context) -> None:
    assert error_of(client.post("/v1/files", files={"file": ("a", b"x" * 200_000)}, data=FORM), 413)["param"] == "file"
    assert error_of(client.post("/v1/files", files={"file": ("a", b"x" * 100_001)}, data=FORM), 413)["param"] == "file"
    body = (piece for piece in [part("file", b"x" * 100_001), b"--B--\r\n"])
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    error_of(client.post("/v1/files", content=body, headers=headers), 413)  # whose length is not said in advance
    assert send(client, b"x" * 100_000)["bytes"] == 100_000
    assert len(kept_files(context)) == 1


def test_what_was_damaged_never_arrives_whole(client: TestClient, context: Context) -> None:
    context.settings = Settings(home=context.home, max_file_bytes=10 << 20)
    made = send(client)
    (place,) = kept_files(context)
    place.write_bytes(b"x" + ROWS[1:])
    assert "has changed on its disk" in error_of(client.get(f"/v1/files/{made['id']}/content"), 503)["message"]
    place.unlink()
    error_of(client.get(f"/v1/files/{made['id']}/content"), 503)
    assert client.get(f"/v1/files/{send(client)['id']}/content").content == ROWS
    large = send(client, bytes(3 << 20))
    max(kept_files(context), key=lambda path: path.stat().st_size).write_bytes(bytes((3 << 20) - 1) + b"x")
    with pytest.raises(RuntimeError, match="response already started"):  # a server cuts the connection
        client.get(f"/v1/files/{large['id']}/content")


def test_a_local_path_is_fit_to_be_trained_on(client: TestClient, context: Context) -> None:
    file = get_file(context, "default", send(client, name="../Rows.JSONL")["id"])
    path = local_path(context, file)
    assert (path.read_bytes(), path.suffix, path.parent.name) == (ROWS, ".jsonl", file.sha256)
    assert local_path(context, file) == path
    path.unlink()
    path.write_bytes(b"damaged")
    assert local_path(context, file).read_bytes() == ROWS
    client.delete(f"/v1/files/{file.file_id}")
    sweep_files(context)
    assert not path.exists()


def test_a_file_of_the_services_is_read_over_http(client: TestClient, context: Context, tmp_path: Path) -> None:
    (tmp_path / "result.csv").write_text("step,train_loss\n1,0.5\n")
    made = add_file(context, "default", tmp_path / "result.csv", filename="r.csv", purpose="fine-tune-results")
    shown = client.get(f"/v1/files/{made.file_id}").json()
    assert (shown["purpose"], shown["filename"]) == ("fine-tune-results", "r.csv")
    assert client.get(f"/v1/files/{made.file_id}/content").text == "step,train_loss\n1,0.5\n"


def test_the_document_tells_how_to_send_a_file(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/files"]["post"]
    schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["required"] == ["file", "purpose"]
    assert {"400", "401", "403", "413"} <= set(operation["responses"])
    assert "ErrorAnswer" in json.dumps(operation["responses"]["413"])
    content = document["paths"]["/v1/files/{file_id}/content"]["get"]["responses"]
    assert list(content["200"]["content"]) == ["application/octet-stream"]
    assert list(content["404"]["content"]) == ["application/json"]
