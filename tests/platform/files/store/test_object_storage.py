"""Artifacts in object storage, against a server of S3's protocol on this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.errors import NotFoundError, RequestError, WorkError
from luthier.core.system.artifact_transfer import WRITE_BYTES
from luthier.platform.auth.service import create_key
from luthier.platform.db.database import Database
from luthier.platform.files.artifacts import ArtifactStore
from luthier.platform.files.service import get_file, local_path
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.server.api import create_app

BUCKET, SECRET = "luthier-test", "test-secret-key-0123456789"
ROOT = f"s3://{BUCKET}/artifacts"


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    """Imported here: every process of a run collects this file, and one runs it."""
    pytest.importorskip("s3fs", reason="needs the extra `s3`")
    pytest.importorskip("moto.server", reason="needs moto[server]")


@pytest.fixture
def s3(empty_bucket: Callable[[str, str], Any]) -> Any:
    """A client that sees the bucket itself, which is made empty."""
    return empty_bucket(BUCKET, SECRET)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "luthier.db") as opened:
        yield opened


def keys(s3: Any) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def test_what_goes_in_comes_out_proved(s3: Any, database: Database, tmp_path: Path) -> None:
    store = ArtifactStore(database, ROOT, tmp_path / "scratch")
    source = tmp_path / "adapter"
    source.write_bytes(bytes(range(256)) * (WRITE_BYTES // 256 + 3))  # more than one piece
    artifact = store.put_file(source, "adapter")
    assert store.put_file(source, "adapter") == artifact
    (key,) = keys(s3)
    assert key.startswith(f"artifacts/{artifact.sha256[:2]}/{artifact.sha256[2:]}-")
    assert store.fetch(artifact.sha256, tmp_path / "copy").read_bytes() == source.read_bytes()
    with store.open(artifact.sha256) as reader:
        assert reader.read(5) == source.read_bytes()[:5]
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"x" * source.stat().st_size)
    with pytest.raises(WorkError, match="its content has digest"):
        store.fetch(artifact.sha256, tmp_path / "other")
    s3.delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(WorkError, match="the file is gone"):
        store.fetch(artifact.sha256, tmp_path / "other")
    with pytest.raises(WorkError, match="the file is gone"):
        store.open(artifact.sha256)
    assert not (tmp_path / "other").exists()
    store.put_file(source, "adapter")
    assert store.fetch(artifact.sha256, tmp_path / "other").read_bytes() == source.read_bytes()
    store.forget_unused([artifact.sha256])
    assert keys(s3) == []
    with pytest.raises(NotFoundError):
        store.fetch(artifact.sha256, tmp_path / "third")


def test_files_over_http_lie_in_the_bucket(s3: Any, tmp_path: Path) -> None:
    rows = b'{"prompt": "a", "completion": "b"}\n' * 100_000
    with Context.open(tmp_path / "home") as context:
        context.settings = Settings(home=context.home, artifacts=ROOT)
        _, key = create_key(context, "test", scopes=("train", "read"))
        with TestClient(create_app(context), headers={"Authorization": f"Bearer {key}"}) as client:
            made = client.post("/v1/files", files={"file": ("a.jsonl", rows)}, data={"purpose": "fine-tune"}).json()
            assert client.get(f"/v1/files/{made['id']}/content").content == rows
            file = get_file(context, "default", made["id"])
            path = local_path(context, file)
            assert (path.read_bytes() == rows, path.suffix) == (True, ".jsonl")
            assert context.home in path.parents
            body = {"bytes": 4, "filename": "b", "mime_type": "text/plain", "purpose": "evals"}
            upload = client.post("/v1/uploads", json=body).json()["id"]
            ids = [
                client.post(f"/v1/uploads/{upload}/parts", files={"data": part}).json()["id"] for part in (b"ab", b"cd")
            ]
            assert len(keys(s3)) == 3
            done = client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": ids}).json()["file"]
            assert client.get(f"/v1/files/{done['id']}/content").content == b"abcd"
            for file_id in (made["id"], done["id"]):
                assert client.delete(f"/v1/files/{file_id}").status_code == 200
            assert keys(s3) == []
            assert not list(context.settings.incoming_folder.iterdir())
        assert not (context.home / "artifacts").exists()


def test_what_cannot_be_sent_is_not_known(s3: Any, tmp_path: Path) -> None:
    with Context.open(tmp_path / "home") as context:
        context.settings = Settings(home=context.home, artifacts="s3://no-such-bucket/a")
        _, key = create_key(context, "test", scopes=("train", "read"))
        with TestClient(create_app(context), headers={"Authorization": f"Bearer {key}"}) as client:
            answer = client.post("/v1/files", files={"file": ("a", b"rows")}, data={"purpose": "fine-tune"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            assert "s3://no-such-bucket/a failed" in answer.json()["error"]["message"]
            assert client.get("/v1/files").json()["data"] == []
        assert not list(context.settings.incoming_folder.iterdir())


def test_a_store_that_does_not_answer(
    s3: Any, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        store = ArtifactStore(database, ROOT, tmp_path)
        source = tmp_path / "adapter"
        source.write_bytes(b"weights")
        with pytest.raises(WorkError, match="EndpointConnectionError") as caught:
            store.put_file(source, "adapter")
    assert SECRET not in str(caught.value)
    assert "AWS_ENDPOINT_URL" in caught.value.do


def test_protocols_that_are_none(database: Database, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nonsense") as caught:
        ArtifactStore(database, "nonsense://user:secret@host/a")
    assert "secret" not in str(caught.value)
