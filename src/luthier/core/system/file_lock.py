"""A lock between processes that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.core.errors import ConflictError

_PAUSE_SECONDS = 0.02


@contextmanager
def file_lock(path: Path, *, what: str, timeout_seconds: float) -> Iterator[int]:
    """Hold an exclusive lock on `path` (made where it is missing, never deleted) while the block runs.

    Under a second is not enough where `is_held` is used, since asking takes the lock for a moment.

    Yields the descriptor: a process that inherits it holds the lock, too, until it ends.

    Args:
        what: what the lock represents, as text, for the message ("run run-2026...", "the database").
        timeout_seconds: how long to wait for another holder.

    Raises:
        ConflictError: another process still holds it after that time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Never deleted: a process could otherwise lock a file that another one has just unlinked and made again.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + timeout_seconds
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise ConflictError(
                    f"{what} is in use by another process",
                    expected=f"the lock {path} to be free within {timeout_seconds:g} s",
                    do="wait until that process has ended, or stop it, and try again",
                )
            time.sleep(_PAUSE_SECONDS)
        yield descriptor
    finally:
        # Closing releases the lock, unless a child process still has the descriptor open.
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a living process holds the exclusive lock on `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared: two processes that ask at the same moment do not take each other for the holder.
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        # flock, not POSIX locks: these are lost as soon as any descriptor of the file in this process is closed.
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
