"""How torch's threads wait for each other on a machine that others use, too."""

from __future__ import annotations

import os

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
