"""The lock between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.errors import ConflictError
from luthier.core.system.files import file_lock, is_held

HOLDER = """
import sys, time
from pathlib import Path
from luthier.core.system.files import file_lock
with file_lock(Path(sys.argv[1]), what="it", timeout_seconds=0):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_and_a_dead_one_lets_go(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    lock.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert is_held(lock)
            with (
                pytest.raises(ConflictError, match="run 7 is in use"),
                file_lock(lock, what="run 7", timeout_seconds=0),
            ):
                pytest.fail("two holders")
        finally:
            holder.kill()
    assert not is_held(lock)
    with file_lock(lock, what="run 7", timeout_seconds=0):
        assert is_held(lock)
    assert not is_held(lock)


def test_a_lock_that_never_was_is_not_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "none" / "lock")
    assert not (tmp_path / "none").exists()


def test_asking_does_not_disturb_a_taker(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with file_lock(lock, what="it", timeout_seconds=0):
        pass
    for _ in range(50):
        is_held(lock)
        with file_lock(lock, what="it", timeout_seconds=1):
            pass
