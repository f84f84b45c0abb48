"""Uploads beside a training: they delay no step, survive an outage, and what a resume needs is never removed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.vacuous import nonempty

from luthier.core.errors import CheckpointError, WorkError
from luthier.core.events import CheckpointUploaded, WarningRaised
from luthier.core.ids import sha256_file
from luthier.features.training.checkpoint_uploads import uploader as module
from luthier.features.training.checkpoint_uploads.bucket import ObjectStore, RunBucket
from luthier.features.training.checkpoint_uploads.lease import LeaseLostError, RunLease
from luthier.features.training.checkpoint_uploads.signature import UploadSigner
from luthier.features.training.checkpoint_uploads.uploader import STAGED, Uploader

RUN, TIMEOUT = "run-20261130-120000-00000a", 120.0


class Store(ObjectStore):
    """A store that a test can stop, and let fail."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.is_open, self.began, self.fails = threading.Event(), threading.Event(), False
        self.is_open.set()
        self.num_attempts = 0

    def upload(self, source: Path, path: str) -> None:
        self.began.set()
        self.num_attempts += 1
        assert self.is_open.wait(TIMEOUT)
        if self.fails:
            raise WorkError("the store sleeps", expected="one that answers", do="wait")
        super().upload(source, path)


class Gathered:
    """A run with an event for each upload."""

    num_events = 0

    def state(self) -> dict[str, Any]:
        return {"record": RUN}

    def events(self, after: int) -> tuple[list[dict[str, Any]], int]:
        self.num_events += 1
        return [{"number": self.num_events}], after + 1


class Training:
    """A run's folder, with checkpoints as training writes them."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store, self.bucket = folder, store, RunBucket(store, RUN)
        self.lease = RunLease(self.bucket, folder, seconds=90.0)
        self.lease.take()
        self.uploader = Uploader(self.bucket, self.lease, Gathered(), folder, "hash", 2)

    def checkpoint(self, step: int, best: int | None = None) -> Path:
        path = self.folder / "checkpoints" / f"step-{step:08d}"
        path.mkdir(parents=True)
        (path / "weights.safetensors").write_bytes(b"w" * step)
        (path / "state.json").write_text(json.dumps({"early_stopping": {"best_step": best or step}}))
        files = sorted(path.iterdir())
        manifest = {file.name: {"sha256": sha256_file(file), "num_bytes": file.stat().st_size} for file in files}
        (path / "manifest.json").write_text(json.dumps(manifest))
        return path

    def save(self, step: int, best: int | None = None) -> None:
        """Write a checkpoint and let it be uploaded."""
        self.uploader.offer(step, self.checkpoint(step, best))

    def steps(self) -> list[int]:
        """The steps that the store's documents lead to, the newest first."""
        return [self.bucket.read_upload(path).step for path in self.bucket.uploads()]


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Training]:
    monkeypatch.setattr(module, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LONGEST_WAIT_SECONDS", 0.01)
    made = Training(tmp_path / "run", Store(str(tmp_path / "bucket")))
    made.uploader.start(None)
    yield made
    made.store.is_open.set()
    made.uploader.close()


def test_a_run_is_known_before_its_first_checkpoint(training: Training) -> None:
    assert training.steps() == [0]


def test_with_a_key_each_document_has_its_signature_until_both_are_pruned(training: Training) -> None:
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    training.store.signer = UploadSigner(key.decode())
    for step in (2, 4, 6):
        training.save(step)
        assert training.uploader.wait(TIMEOUT)
    assert training.steps() == [6, 4], "as many as are kept, and all are verified"
    documents = training.bucket.uploads()
    signatures = [name for name in training.bucket.names() if name.endswith(".sig")]
    assert sorted(signatures) == sorted(f"{name}.sig" for name in documents)
    training.store.write(training.bucket.path(documents[0]), b"{}")
    with pytest.raises(CheckpointError, match="its signature"):
        training.bucket.read_upload(documents[0])


def test_steps_do_not_wait_and_of_those_that_wait_the_newest_is_uploaded(training: Training) -> None:
    training.store.is_open.clear()
    training.save(2)
    assert training.store.began.wait(TIMEOUT)
    for step in (4, 6, 8):  # returns although the store is blocked
        training.save(step)
    shutil.rmtree(training.folder / "checkpoints")  # pruned by the training meanwhile
    staged = [path.name for path in (training.folder / STAGED).glob("*/*")]
    assert sorted(staged) == ["step-00000002", "step-00000008"], "one that is sent, and one that waits"
    training.store.is_open.set()
    assert training.uploader.wait(TIMEOUT)
    assert training.steps() == [8, 2]
    reports = list(training.uploader.take_reports())
    assert [(type(one), one.step) for one in reports] == [(CheckpointUploaded, 2), (CheckpointUploaded, 8)]
    assert isinstance(reports[1], CheckpointUploaded)
    assert reports[1].num_bytes > 8
    upload = training.bucket.read_upload(training.bucket.uploads()[0])
    for file in nonempty(upload.files()):
        training.bucket.fetch(file, training.folder / "fetched")
    assert list((training.folder / STAGED).rglob("*.safetensors")) == []


def test_a_store_that_does_not_answer_is_reported_once_and_gets_the_newest_later(training: Training) -> None:
    training.store.fails = True
    training.save(2)
    while training.store.num_attempts < 3:
        assert training.uploader.wait(0.02) is False
    training.save(4)
    training.store.fails = False
    assert training.uploader.wait(TIMEOUT)
    warnings = [one for one in training.uploader.take_reports() if isinstance(one, WarningRaised)]
    assert [one.code for one in warnings] == ["checkpoint_not_uploaded"]
    assert "the store sleeps" in warnings[0].message
    assert training.steps()[0] == 4


def test_the_end_of_a_run_takes_along_a_checkpoint_that_was_not_sent(training: Training) -> None:
    training.store.fails = True
    training.save(2)
    while training.store.num_attempts < 2:
        assert training.uploader.wait(0.02) is False
    (training.folder / "report.html").write_text("done")
    training.uploader.finish({"report.html": training.folder / "report.html"})
    assert training.uploader.wait(0.05) is False
    assert training.uploader.problem == "the store sleeps"
    training.store.fails = False
    assert training.uploader.wait(TIMEOUT)
    upload = training.bucket.read_upload(training.bucket.uploads()[0])
    assert (upload.step, [file.name for file in upload.result]) == (2, ["report.html"])


def test_what_a_resume_needs_is_kept_and_all_else_removed(training: Training) -> None:
    for step in (2, 4, 6, 8):
        training.save(step, best=2)
        assert training.uploader.wait(TIMEOUT)
    assert training.steps() == [8, 6]
    uploads = [training.bucket.read_upload(path) for path in training.bucket.uploads()]
    assert [sorted(one.checkpoints) for one in uploads] == [
        ["step-00000002", "step-00000008"], ["step-00000002", "step-00000006"],
    ]  # fmt: skip
    needed = {file.path for one in uploads for file in one.files()} | set(training.bucket.uploads())
    assert {name for name in training.bucket.names() if not name.startswith("leases/")} == needed
    assert len(uploads[0].events) == 5, "every piece of the history, also those of uploads that are gone"


def test_a_machine_that_was_replaced_uploads_and_removes_nothing_more(training: Training, tmp_path: Path) -> None:
    training.save(2)
    assert training.uploader.wait(TIMEOUT)
    other = Training.__new__(Training)
    other.folder, other.store, other.bucket = tmp_path / "other", training.store, training.bucket
    other.lease = RunLease(training.bucket, other.folder, seconds=90.0, sleep=lambda _: None)
    other.lease.take()
    other.uploader = Uploader(other.bucket, other.lease, Gathered(), other.folder, "hash", 2)
    other.uploader.start(other.checkpoint(2))
    assert other.uploader.wait(TIMEOUT)
    before = training.bucket.names()
    assert [name for name in before if name.startswith("g00000001")] == [], "the new holder has a copy of its own"
    training.save(4)
    assert training.uploader.wait(TIMEOUT) is False
    with pytest.raises(LeaseLostError):
        list(training.uploader.take_reports())
    assert training.bucket.names() == before
    other.uploader.close()


def test_a_file_system_without_hard_links_gets_copies(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_self: Path, _target: Path) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    training.save(2)
    assert training.uploader.wait(TIMEOUT)
    assert training.steps()[0] == 2


@pytest.mark.parametrize("kill", ["events", "state"])
def test_a_kill_before_the_document_leaves_the_upload_before_it(
    training: Training, monkeypatch: pytest.MonkeyPatch, kill: str
) -> None:
    training.save(2)
    assert training.uploader.wait(TIMEOUT)
    writes: Callable[[str, bytes], None] = training.store.write

    def torn(path: str, content: bytes) -> None:
        if "/upload-" in path or f"/{kill}-" in path:
            raise WorkError("killed here", expected="", do="")
        writes(path, content)

    monkeypatch.setattr(training.store, "write", torn)
    training.save(4)
    assert training.uploader.wait(0.05) is False
    assert training.steps()[0] == 2
    monkeypatch.setattr(training.store, "write", writes)
    assert training.uploader.wait(TIMEOUT)
    assert training.steps()[0] == 4
