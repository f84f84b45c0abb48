"""Whether the wall clock was set: by an administrator, by a time server, by a machine that woke up wrong.

The times that are kept in a database are the wall clock's, since they outlive processes and machines. What one process
waits for is measured by a clock that is never set; comparing the two shows when the wall clock was set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

SLACK_SECONDS: Final = 5.0
"""What clocks differ by without having been set."""


def elapsed() -> float:
    """Seconds on a clock that is never set, and that continues while the machine sleeps."""
    # On Linux CLOCK_MONOTONIC stops while a machine sleeps: after waking up the wall clock would look as if it had been
    # set. On macOS and Windows it continues.
    if (clock := getattr(time, "CLOCK_BOOTTIME", None)) is not None:
        clocks: Any = time
        return float(clocks.clock_gettime(clock))
    return time.monotonic()


class JumpWatch:
    """Compares the wall clock with one that is never set, from one look to the next."""

    def __init__(self, clock: Callable[[], float] = elapsed) -> None:
        self._clock = clock
        self._before: tuple[float, float] | None = None

    def look(self, now: float) -> float:
        """By how many seconds the wall clock, which shows `now`, was set forward since the last look; negative: back.

        0 where that is within the slack, and at the first look.
        """
        before, self._before = self._before, (now, self._clock())
        if before is None:
            return 0.0
        # How far the wall clock went beyond what really passed.
        jumped = (now - before[0]) - (self._before[1] - before[1])
        return jumped if abs(jumped) > SLACK_SECONDS else 0.0
