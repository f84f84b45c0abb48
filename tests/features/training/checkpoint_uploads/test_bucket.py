"""Objects of a run against a server of S3's protocol: made once, read whole, and no key in a message."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import CheckpointError, RequestError, WorkError
from luthier.features.training.checkpoint_uploads import bucket as bucket_module
from luthier.features.training.checkpoint_uploads.bucket import ObjectStore, RunBucket, note_launch, run_of_launch

BUCKET, SECRET, RUN = "luthier-objects", "test-secret-key-0123456789", "run-20261130-120000-00000a"


@pytest.fixture
def store(empty_bucket: Callable[[str, str], Any]) -> ObjectStore:
    empty_bucket(BUCKET, SECRET)
    return ObjectStore(f"s3://{BUCKET}/runs of machines")


def test_an_object_is_made_once(store: ObjectStore) -> None:
    assert store.names() == store.names("leases") == []
    assert store.create("leases/1.json", b"first") is True
    assert store.create("leases/1.json", b"second") is False
    assert store.read("leases/1.json") == b"first"
    store.write("leases/1.json", b"third")
    assert (store.read("leases/1.json"), store.names("leases")) == (b"third", ["leases/1.json"])
    store.remove("leases/1.json")
    store.remove("leases/1.json")
    assert store.names() == []
    with pytest.raises(FileNotFoundError):
        store.read("leases/1.json")


def test_in_a_shared_folder_an_object_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(str(tmp_path / "shared"))
    assert store.create("leases/1.json", b"first") is True
    # As for a machine that has looked before the other one wrote.
    monkeypatch.setattr(store._files, "exists", lambda _path: False)
    assert store.create("leases/1.json", b"second") is False
    assert store.read("leases/1.json") == b"first"


def test_files_and_documents_come_back_proved(store: ObjectStore, tmp_path: Path) -> None:
    bucket, source = RunBucket(store, RUN), tmp_path / "weights"
    source.write_bytes(b"0123456789")
    file = bucket.put(source, "g00000001/step-00000002/weights")
    document = bucket.put_json("g00000001/state.json.gz", {"step": 2})
    bucket.fetch(file, tmp_path / "copy")
    assert ((tmp_path / "copy").read_bytes(), bucket.read_json(document)) == (b"0123456789", {"step": 2})
    for path in (file.path, document.path):
        store.write(bucket.path(path), b"other")
    with pytest.raises(CheckpointError, match="weights has digest"):
        bucket.fetch(file, tmp_path / "copy")
    with pytest.raises(CheckpointError, match=r"state.json.gz has digest"):
        bucket.read_json(document)
    store.remove(bucket.path(document.path))
    with pytest.raises(CheckpointError, match=r"state.json.gz is gone"):
        bucket.read_json(document)
    bucket.remove_all()
    assert bucket.names() == []


def test_a_document_that_unpacks_to_too_much_or_is_none_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write to the bucket writes digests, too."""
    bucket = RunBucket(ObjectStore(str(tmp_path)), RUN)
    monkeypatch.setattr(bucket_module, "_MAX_DOCUMENT_BYTES", 1 << 20)
    small, large = bucket.put_json("small.json.gz", "a" * 1000), bucket.put_json("large.json.gz", "a" * (1 << 20))
    assert large.num_bytes < 1 << 14
    assert bucket.read_json(small) == "a" * 1000
    with pytest.raises(CheckpointError, match=r"large.json.gz unpacks to more than 1 MiB"):
        bucket.read_json(large)
    for number, content in enumerate((b"no gzip", gzip.compress(b"{"), gzip.compress(b"1" * 999)[:-9], b"")):
        path = tmp_path / f"content-{number}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            bucket.read_json(bucket.put(path, f"other-{number}.json.gz"))


def test_a_launch_names_its_run(store: ObjectStore) -> None:
    assert run_of_launch(store, "spot-1") is None
    note_launch(store, "spot-1", RUN)
    assert (run_of_launch(store, "spot-1"), run_of_launch(store, "spot-2")) == (RUN, None)


def test_missing_credentials_and_buckets_are_named_without_a_secret(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere = ObjectStore("s3://no-such-bucket/runs")
    for use in (nowhere.write, nowhere.create):
        with pytest.raises(WorkError, match="s3://no-such-bucket/runs failed: there is no such bucket") as caught:
            use("a", b"")
        assert SECRET not in str(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(WorkError, match=f"s3://{BUCKET}/runs failed") as caught:
        ObjectStore(f"s3://{BUCKET}/runs").create("leases/1.json", b"")
    assert "credentials in the environment" in caught.value.do


def test_a_protocol_that_is_none_is_refused() -> None:
    with pytest.raises(RequestError, match="nonsense") as caught:
        ObjectStore("nonsense://user:secret@host/a")
    assert "secret" not in str(caught.value)
    assert caught.value.do == "correct LUTHIER_CHECKPOINTS or --checkpoints"


def test_the_driver_of_the_store_itself_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(RequestError, match="the driver for checkpoints at gs:// is not installed") as caught:
        ObjectStore("gs://bucket/runs")
    assert caught.value.do == "pip install 'luthier[gs]', or name a place of this machine"
