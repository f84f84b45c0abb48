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
    """What one process has seen of clock and leases. Thread-safe.

    Args:
        clock: Seconds on a clock that is never set.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._jumps, self._lock = clock, JumpWatch(clock), threading.Lock()
        self._trusted_from = -math.inf
        self._seen: dict[tuple[int, int, float], float] = {}

    def look(self, now: float, lease_seconds: float) -> None:
        """Notice whether the database's clock was set forward.

        Args:
            now: Seconds since 1970 by the database's clock.
            lease_seconds: The length of a lease: for this long no lease counts as expired after a jump.
        """
        with self._lock:
            if self._jumps.look(now) > 0:
                # A jump forward makes living leases look expired. Within one lease's time every living worker renews
                # its own.
                self._trusted_from = self._clock() + lease_seconds

    def may_have_run_out(self) -> bool:
        """Whether a lease whose end is past can be taken as run out: not just after the clock was set forward."""
        with self._lock:
            return self._clock() >= self._trusted_from

    def unrenewed(self, leases: Sequence[tuple[int, int, float]], lease_seconds: float) -> list[int]:
        """Of leases that end too late, those that were not renewed for the length of a lease.

        Args:
            leases: All leases that end too late now, of all lanes: number of the job, attempt,
                end in seconds since 1970.
            lease_seconds: The length of a lease.

        Returns:
            The numbers of their jobs.
        """
        with self._lock:
            now = self._clock()
            # A renewal changes the end and so the key: its time starts again. Leases that are gone drop out, which
            # bounds memory.
            self._seen = {lease: self._seen.get(lease, now) for lease in leases}
            return [lease[0] for lease, since in self._seen.items() if now - since >= lease_seconds]
