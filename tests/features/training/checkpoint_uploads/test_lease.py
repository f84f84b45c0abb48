"""One machine at a time uploads for a run, and one that was only thought to be lost stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.errors import ConflictError
from luthier.features.training.checkpoint_uploads.bucket import ObjectStore, RunBucket
from luthier.features.training.checkpoint_uploads.lease import LeaseLostError, RunLease

RUN = "run-20261130-120000-00000a"


@pytest.fixture
def bucket(tmp_path: Path) -> RunBucket:
    return RunBucket(ObjectStore(str(tmp_path / "bucket")), RUN)


def lease_of(bucket: RunBucket, machine: Path, meanwhile: Callable[[], None] = lambda: None) -> RunLease:
    """A lease of a machine, with what happens elsewhere while it waits."""
    return RunLease(bucket, machine, seconds=90.0, sleep=lambda _seconds: meanwhile())


def unexpected() -> None:
    raise AssertionError("it waits for a machine that holds nothing")


def test_a_machine_without_a_sign_of_life_is_replaced_and_finds_out(bucket: RunBucket, tmp_path: Path) -> None:
    first, seconds = lease_of(bucket, tmp_path / "a"), list[float]()
    first.take()
    second = RunLease(bucket, tmp_path / "b", seconds=90.0, sleep=seconds.append)
    second.take()
    assert (first.generation, second.generation, sum(seconds)) == (1, 2, 90.0)
    second.check()
    for of_the_first in (first.check, first.renew):
        with pytest.raises(LeaseLostError, match=f"run {RUN} is continued by "):
            of_the_first()
    second.forget_earlier()
    assert [name for name in bucket.names() if "00000001" in name] == []
    second.renew()


def test_a_machine_that_shows_signs_of_life_keeps_the_run(bucket: RunBucket, tmp_path: Path) -> None:
    first = lease_of(bucket, tmp_path / "a")
    first.take()
    second = lease_of(bucket, tmp_path / "b", first.renew)
    with pytest.raises(ConflictError, match=f"run {RUN}: .* is training it"):
        second.take()
    first.renew()


def test_a_released_run_is_taken_at_once(bucket: RunBucket, tmp_path: Path) -> None:
    first = lease_of(bucket, tmp_path / "a")
    first.take()
    first.release()
    second = lease_of(bucket, tmp_path / "b", unexpected)
    second.take()
    assert second.generation == 2


def test_a_release_ends_the_wait(bucket: RunBucket, tmp_path: Path) -> None:
    first, waits = lease_of(bucket, tmp_path / "a"), list[float]()
    first.take()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        first.release()

    RunLease(bucket, tmp_path / "b", seconds=90.0, sleep=sleep).take()
    assert len(waits) == 1


def test_a_restart_on_the_same_machine_waits_for_nothing(bucket: RunBucket, tmp_path: Path) -> None:
    lease_of(bucket, tmp_path / "a").take()  # killed: nothing was released
    again = lease_of(bucket, tmp_path / "a", unexpected)
    again.take()
    assert again.generation == 2


def test_of_two_machines_at_the_same_moment_one_gets_it(bucket: RunBucket, tmp_path: Path) -> None:
    lease_of(bucket, tmp_path / "a").take()
    third = lease_of(bucket, tmp_path / "c")
    taken: list[bool] = []

    def take_meanwhile() -> None:
        if not taken:
            taken.append(True)
            third.take()

    second = lease_of(bucket, tmp_path / "b", take_meanwhile)
    with pytest.raises(ConflictError, match="took it at the same moment"):
        second.take()
    third.check()


def test_a_store_that_ignores_the_condition_has_one_holder(
    bucket: RunBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old S3-compatible stores overwrite what must not be there: the last writer then holds the lease."""
    store = bucket.store

    def overwritten(path: str, content: bytes, mode: str = "overwrite") -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content if mode == "overwrite" else b'{"secret": "theirs"}')

    monkeypatch.setattr(store, "_is_local", False)
    monkeypatch.setattr(store._files, "pipe_file", overwritten)
    with pytest.raises(ConflictError, match="at the same moment"):
        lease_of(bucket, tmp_path / "a").take()
