"""Rate limits in this process's memory: token buckets, and limits on failures from one address.

A failure is counted before the work that may fail, and given back if it does not. Counting afterwards would let all
attempts pass that come at the same time; taking beforehand alone would refuse valid ones. So an attempt waits while
others of its address are running, and is refused only if none is left to give anything back.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from luthier.core.errors import BusyError

MOST_BUCKETS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer of a bucket.

    Attributes:
        is_allowed: Whether the request may continue.
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

    Of more than `most` names the least recently used one is forgotten: its bucket is full again.
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
        """Put one back that was taken and not used; a full bucket is unchanged."""
        with self._lock:
            if (known := self._buckets.get(name)) is not None:
                # The time stays that of the last refill, else what has filled up since would be lost.
                self._buckets[name] = (min(float(per_minute), known[0] + 1), known[1])


LONGEST_WAIT_SECONDS: Final = 15.0
"""How long an attempt that came while a failure was left waits for another one."""


class TooManyFailuresError(BusyError):
    """An address has failed too often. The request is not executed."""


@dataclass(slots=True)
class Attempt:
    """A running one. It counts as a success unless `failed` is set."""

    failed: bool = False


class FailureLimit:
    """The failures of all addresses. Thread-safe.

    Args:
        what: What is counted, as text for messages, such as `wrong keys`.
        per_minute: The failures a minute that one address may have.
        clock: Seconds on a clock that is never set.
    """

    def __init__(self, what: str, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self.per_minute, self._clock = what, per_minute, clock
        self._buckets, self._running = TokenBuckets(clock=clock), Counter[str]()
        # Its lock is re-entrant: `attempt` holds it while it calls `begin`.
        self._changed = threading.Condition()

    def check(self, block: str) -> None:
        """Do nothing if an attempt may begin now.

        Raises:
            TooManyFailuresError: An attempt that begins now would be refused.
        """
        with self._changed:
            # cost 0: looks without taking.
            taken = self._buckets.take(block, self.per_minute, cost=0)
            if not taken.is_allowed and not self._running.get(block):
                raise self.refusal(taken)

    def begin(self, block: str) -> Taken:
        """Count an attempt as failed, before it begins; where that is allowed, `end` must follow."""
        with self._changed:
            taken = self._buckets.take(block, self.per_minute)
            if taken.is_allowed:
                self._running[block] += 1
            return taken

    def end(self, block: str, *, failed: bool) -> None:
        """Say how an attempt ended that `begin` has allowed: a success is not counted."""
        with self._changed:
            self._running[block] -= 1
            if not self._running[block]:
                del self._running[block]
            if not failed:
                self._buckets.give_back(block, self.per_minute)
            self._changed.notify_all()

    def num_running(self, block: str) -> int:
        """How many attempts of an address are running."""
        with self._changed:
            return self._running.get(block, 0)

    @contextmanager
    def attempt(self, address: str) -> Iterator[Attempt]:
        """Attempt something quick. Where an exception ends the block, nothing is known, and nothing is counted.

        Raises:
            TooManyFailuresError: The address has no failure left, and no running attempt gives one back.
        """
        block, made = block_of(address), Attempt()
        give_up_at = self._clock() + LONGEST_WAIT_SECONDS
        with self._changed:
            while not (taken := self.begin(block)).is_allowed:
                # No running attempt could give a failure back, or the wait is over.
                if not self._running.get(block) or self._clock() >= give_up_at:
                    raise self.refusal(taken)
                self._changed.wait(LONGEST_WAIT_SECONDS)
        try:
            yield made
        except BaseException:
            made.failed = False
            raise
        finally:
            self.end(block, failed=made.failed)

    def refusal(self, taken: Taken) -> TooManyFailuresError:
        """The error for an address with no failures left."""
        return TooManyFailuresError(
            f"too many {self._what} came from your address",
            expected=f"at most {self.per_minute} a minute",
            do=f"wait {max(1, round(taken.wait_seconds))} s, then try again",
            retry_seconds=taken.wait_seconds,
        )


def block_of(address: str) -> str:
    """What failures are counted by: an IPv4 address, or the /64 of an IPv6 one, which belongs to one client."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        # ::ffff:a.b.c.d is an IPv4 client on a dual-stack socket.
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
