"""So many failures a minute from one address, counted before the work that may fail, and given back where it does not.

Who counts afterwards lets all those pass that come at the same time. What is taken beforehand would refuse those who
are right, where many of them come at once: so an attempt waits while others of its address are under way, and is
refused only where none is left to give anything back.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from luthier.core.errors import BusyError
from luthier.platform.auth.rate_limiter import Taken, TokenBuckets

LONGEST_WAIT_SECONDS: Final = 15.0
"""How long an attempt that came while a failure was left waits for another one."""


class TooManyFailuresError(BusyError):
    """An address has failed too often. Nothing of what was asked is done."""


@dataclass(slots=True)
class Attempt:
    """One that is under way. It counts as a success unless `failed` is set."""

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
        """How many attempts of an address are under way."""
        with self._changed:
            return self._running.get(block, 0)

    @contextmanager
    def attempt(self, address: str) -> Iterator[Attempt]:
        """Attempt something quick. Where an exception ends the block, nothing is known, and nothing is counted.

        Raises:
            TooManyFailuresError: The address has no failure left, and no attempt under way gives one back.
        """
        block, made = block_of(address), Attempt()
        give_up_at = self._clock() + LONGEST_WAIT_SECONDS
        with self._changed:
            while not (taken := self.begin(block)).is_allowed:
                # Nobody is under way who could give a failure back, or the wait is over.
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
        """What is said to an address with no failures left."""
        return TooManyFailuresError(
            f"too many {self._what} came from your address",
            expected=f"at most {self.per_minute} a minute",
            do=f"wait {max(1, round(taken.wait_seconds))} s, then try again",
            retry_seconds=taken.wait_seconds,
        )


def block_of(address: str) -> str:
    """What failures are counted by: an IPv4 address, or the /64 of an IPv6 one, of which a client has all."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        # ::ffff:a.b.c.d is an IPv4 client on a dual-stack socket.
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
