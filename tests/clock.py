"""Time in tests: a clock that they set, and waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Seconds that pass when a test sets `now`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def wait_until(seen: Callable[[], bool], seconds: float = 120) -> None:
    """Returns when `seen` is true; an AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)
