"""Admission control of requests: how many are in progress or waiting, in total and of each API key."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from luthier.core.errors import BusyError

_LOOK_BACK_SECONDS: Final = 60.0
_UNKNOWN_SECONDS: Final = 5
_MAX_SECONDS: Final = 60


class Slot:
    """The slot of one request that is running or waiting."""

    def __init__(self, queue: AdmissionQueue, key: str | None) -> None:
        self._queue, self._key, self._is_in = queue, key, True
        self.on_leave: Callable[[], None] = lambda: None

    def leave(self, *, has_ended: bool) -> None:
        """Release the slot, once.

        Args:
            has_ended: Whether the request completed rather than being cancelled.
        """
        with self._queue.lock:
            if not self._is_in:
                return
            self._is_in = False
            self._queue.left(self._key, has_ended)
        self.on_leave()


class NoSlot:
    """In place of the slot of a request that is not counted in the queue."""

    def leave(self, *, has_ended: bool) -> None:
        """Nothing: none was taken."""


class AdmissionQueue:
    """All requests of a server. most: total limit; most_per_key: limit per API key. Thread-safe."""

    def __init__(self, most: int, most_per_key: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._most_per_key, self._clock = most, most_per_key, clock
        self.lock = threading.Lock()
        self._num_of: Counter[str | None] = Counter()
        self._ends: deque[float] = deque(maxlen=256)

    def enter(self, key: str | None, *, had_one: bool = False) -> Slot:
        """Take a slot.

        Raises:
            BusyError: None is free.
        """
        with self.lock:
            num, num_own = self._num_of.total(), self._num_of[key]
            if had_one:
                num = num_own = 0
            if num >= self._most:
                raise self._busy(num, num, "", f"at most {self._most} (LUTHIER_SERVING_QUEUE)")
            # The total is checked first: on a full server the key's own limit is not the cause.
            if key is not None and num_own >= self._most_per_key:
                most = f"at most {self._most_per_key} of one key (LUTHIER_SERVING_QUEUE_PER_KEY)"
                raise self._busy(num, num_own, " of this key", most)
            self._num_of[key] += 1
            return Slot(self, key)

    def left(self, key: str | None, has_ended: bool) -> None:
        """Called by a slot, which holds the lock."""
        self._num_of[key] -= 1
        if not self._num_of[key]:
            del self._num_of[key]
        # Only completed requests measure throughput: cancelled ones end early and would overstate it.
        if has_ended:
            self._ends.append(self._clock())

    def _busy(self, num: int, num_shown: int, whose: str, expected: str) -> BusyError:
        return BusyError(
            f"{num_shown} requests{whose} are in progress or waiting already",
            expected=expected,
            do="ask again after the seconds of the header Retry-After",
            retry_seconds=self._retry_seconds(num),
        )

    def _retry_seconds(self, num: int) -> int:
        """Estimated seconds for half of the current requests at the throughput of the last minute."""
        now = self._clock()
        ends = [end for end in self._ends if now - end <= _LOOK_BACK_SECONDS]
        # A rate needs an interval, hence at least two completions.
        if len(ends) < 2 or now <= ends[0]:
            return _UNKNOWN_SECONDS
        pace = len(ends) / (now - ends[0])
        return min(_MAX_SECONDS, max(1, math.ceil(num / 2 / pace)))
