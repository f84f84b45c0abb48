"""Time in tests: a clock that they set, and waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta


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


def today() -> date:
    """The day in UTC, with a minute of it left at least: near its end, the next one is waited for."""
    soon = datetime.now(UTC) + timedelta(minutes=1)
    wait_until(lambda: datetime.now(UTC).date() == soon.date())
    return soon.date()
