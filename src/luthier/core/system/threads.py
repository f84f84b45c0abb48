"""Threads: how torch's wait for each other, how one of ours is started, and a limit of the process that they share."""

from __future__ import annotations

import contextlib
import csv
import os
import threading
from collections.abc import Callable, Iterator

from luthier.core.errors import BusyError

# About 50 microseconds: longer than the gaps between operations of a step, shorter than a turn of another process.
_SPIN_COUNT = "20000"
_MAX_CELL_CHARACTERS = 2**31 - 1

_csv_lock = threading.Lock()
_num_large = 0
"""Blocks of `large_csv_cells` under way, in all threads."""
_csv_limit = 0
"""The limit before the first of them."""


def wait_briefly() -> None:
    """Let a thread that waits for the others spin shortly, then sleep. Must be called before torch is loaded.

    GNU OpenMP spins for milliseconds by default. With one other busy process on two cores, training then falls to a
    fifteenth of its speed, with this to a fifth, and on a quiet machine nothing changes (docs/log.md). What the user
    has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def start_daemon(work: Callable[[], object], name: str) -> threading.Thread:
    """Run work in a thread of this name, which does not keep the process alive.

    Raises:
        BusyError: The system starts no more threads; the work was not begun.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # "can't start new thread": CPython has no class of its own for it
        raise BusyError(
            "the system starts no more threads",
            expected="room for one more",
            do="try again in a moment; if it stays so, raise the limit of processes and threads of the server",
        ) from error
    return thread


@contextlib.contextmanager
def large_csv_cells() -> Iterator[None]:
    """Lift the csv module's limit of 128 KiB a cell within the block, for as long as any thread is in one."""
    # The limit is one for the whole process, and rows are read by generators that end in any order: were each to put
    # back what it found, the first to end would lower it under the others.
    global _num_large, _csv_limit
    with _csv_lock:
        if _num_large == 0:
            _csv_limit = csv.field_size_limit(_MAX_CELL_CHARACTERS)
        _num_large += 1
    try:
        yield
    finally:
        with _csv_lock:
            _num_large -= 1
            if _num_large == 0:
                csv.field_size_limit(_csv_limit)
