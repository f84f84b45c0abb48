"""So many a minute, by token buckets in this process's memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MOST_BUCKETS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer of a bucket.

    Attributes:
        is_allowed: Whether the request may go on.
        limit: The size of the bucket, in requests a minute.
        num_remaining: Whole requests that are left.
        wait_seconds: Seconds until the next request is allowed; 0 if this one is.
        reset_seconds: Seconds until the bucket is full again.
    """

    is_allowed: bool
    limit: int
    num_remaining: int
    wait_seconds: float
    reset_seconds: float


class TokenBuckets:
    """One bucket a name: it holds a minute's worth, and fills up evenly. Safe to share between threads.

    Of more than `most` names the one that was asked for longest ago is forgotten: its bucket is full again.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, most: int = MOST_BUCKETS) -> None:
        self._clock, self._most, self._lock = clock, most, threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> (tokens, when that was so)

    def owe(self, name: str, per_minute: int, cost: int) -> None:
        """Take `cost` tokens whether they are there or not; a bucket owes at most one minute's worth.

        Args:
            name: The bucket.
            per_minute: Its size, and how many tokens it gains in a minute.
            cost: How many tokens to take.
        """
        with self._lock:
            now = self._clock()
            # Popped and put back: the order of the dict is that of the last use, from which `_put` evicts.
            tokens, since = self._buckets.pop(name, (float(per_minute), now))
            tokens = min(float(per_minute), tokens + (now - since) * per_minute / 60)
            self._put(name, max(-float(per_minute), tokens - cost), now)

    def _put(self, name: str, tokens: float, now: float) -> None:
        self._buckets[name] = (tokens, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)

    def take(self, name: str, per_minute: int, *, cost: int = 1) -> Taken:
        """Take a token from a bucket if there is one.

        Args:
            name: The bucket.
            per_minute: Its size, and how many tokens it gains in a minute.
            cost: How many tokens to take where at least one is there; 0 only looks.
        """
        with self._lock:
            now = self._clock()
            tokens, since = self._buckets.pop(name, (float(per_minute), now))
            # Refilled when it is looked at: no timer runs for buckets.
            tokens = min(float(per_minute), tokens + (now - since) * per_minute / 60)
            is_allowed = tokens >= 1
            tokens -= cost if is_allowed else 0
            self._put(name, tokens, now)
        a_second = per_minute / 60
        return Taken(
            is_allowed=is_allowed,
            limit=per_minute,
            num_remaining=max(0, int(tokens)),
            # Until one whole token is there.
            wait_seconds=0.0 if is_allowed else (1 - tokens) / a_second,
            reset_seconds=(per_minute - tokens) / a_second,
        )

    def give_back(self, name: str, per_minute: int) -> None:
        """Put one back that was taken and not used up; a full bucket stays as it is."""
        with self._lock:
            if (known := self._buckets.get(name)) is not None:
                # The time stays that of the last refill, else what has filled up since would be lost.
                self._buckets[name] = (min(float(per_minute), known[0] + 1), known[1])
