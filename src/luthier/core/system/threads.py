"""Threads: how torch's wait for each other on a machine that others use, too, and how one of ours is started."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from luthier.core.errors import BusyError

# About 50 microseconds: longer than the gaps between operations of a step, shorter than a turn of another process.
_SPIN_COUNT = "20000"


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
