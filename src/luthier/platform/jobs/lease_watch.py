"""Leases whose end is a time of the wall clock, which may be set while they run.

As leases of leader election in Kubernetes, those that look wrong are judged by when this process has seen them change,
on its own clock, and not by the time that is written in them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

from luthier.core.system.clock_jump import JumpWatch


class LeaseWatch:
    """What one process has seen of clock and leases. Safe to share between threads. clock: one that nobody sets."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._jumps, self._lock = clock, JumpWatch(clock), threading.Lock()
        self._trusted_from = -math.inf
        self._seen: dict[tuple[int, int, float], float] = {}

    def look(self, now: float, lease_seconds: float) -> None:
        """See whether the database's clock, which shows `now`, was set forward."""
        with self._lock:
            if self._jumps.look(now) > 0:
                self._trusted_from = self._clock() + lease_seconds

    def may_have_run_out(self) -> bool:
        """Whether a lease whose end is past can be taken as run out: not just after the clock was set forward."""
        with self._lock:
            return self._clock() >= self._trusted_from

    def unrenewed(self, leases: Sequence[tuple[int, int, float]], lease_seconds: float) -> list[int]:
        """Of leases that end too late: the numbers of those that were the same for the time of a lease.

        leases: all of them that there are now, by number, attempt and end.
        """
        with self._lock:
            now = self._clock()
            self._seen = {lease: self._seen.get(lease, now) for lease in leases}
            return [lease[0] for lease, since in self._seen.items() if now - since >= lease_seconds]
