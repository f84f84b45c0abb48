"""Sign-ins by password: counted before they are checked, few at a time, in a line that refuses what is too much.

    line of one address --its turn: a failure is left--> line of the threads --> a thread checks the password

Of wrong passwords no more are hashed than the limit of failures allows, however many come at once. Many right ones at
once all come in: each gives back what it took, and the next one of its address goes on with that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from luthier.core.errors import BusyError
from luthier.platform.auth.failure_limits import LONGEST_WAIT_SECONDS, FailureLimit, block_of
from luthier.platform.auth.password_hashing import MOST_WAITING_OF_ONE, PasswordThreads

Found = TypeVar("Found")
_SECONDS_A_MINUTE: Final = 60.0


@dataclass(slots=True)
class _Line:
    """The sign-ins of one address. head: held by the first one that waits. ended: one of them has ended."""

    head: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    num_there: int = 0


class SignInQueue:
    """The sign-ins of one server, for one event loop.

    Args:
        threads: The threads that hash.
        limit: The failures that one address may have.
        longest_wait_seconds: How long a sign-in waits until its address may fail once more. It does not wait where no
            failure is left and no sign-in under way may give one back.
    """

    def __init__(
        self, threads: PasswordThreads, limit: FailureLimit, *, longest_wait_seconds: float = LONGEST_WAIT_SECONDS
    ) -> None:
        self.limit, self._threads, self._longest = limit, threads, longest_wait_seconds
        self._lines: dict[str, _Line] = {}

    async def attempt(self, address: str, sign_in: Callable[[], Found | None]) -> Found | None:
        """What a sign-in returns, done in one of the threads.

        Args:
            address: The client's, by which failures are counted.
            sign_in: Checks the password; None counts as a failure.

        Raises:
            BusyError: Too many sign-ins wait already.
            TooManyFailuresError: The address has no failure left.
        """
        block = block_of(address)
        # Only where nobody of the address is under way: an attempt that is may give its failure back.
        if block not in self._lines:
            self.limit.check(block)
        line = self._lines.setdefault(block, _Line())
        if line.num_there >= MOST_WAITING_OF_ONE:
            raise BusyError(
                f"{line.num_there} sign-ins from your address wait already",
                expected=f"at most {MOST_WAITING_OF_ONE} at a time",
                do=f"try again in {_SECONDS_A_MINUTE / self.limit.per_minute:.0f} s",
                retry_seconds=_SECONDS_A_MINUTE / self.limit.per_minute,
            )
        line.num_there += 1
        try:
            return await self._attempt(block, line, sign_in)
        finally:
            line.num_there -= 1
            if not line.num_there:
                # Lines go with their last sign-in, so that addresses cannot pile up in memory.
                del self._lines[block]

    async def _attempt(self, block: str, line: _Line, sign_in: Callable[[], Found | None]) -> Found | None:
        # Who waits for a turn takes no place in the line of the threads: one address could fill it without any work.
        await self._turn(block, line)
        failed = True  # who gives up in the middle may have been wrong
        try:
            found = await self._threads.run(block, sign_in)
            failed = found is None
            return found
        except Exception:  # such as a database that does not answer: nobody knows
            failed = False
            raise
        finally:
            # `_turn` has taken a failure in advance; a success returns it and wakes the next of the line.
            self.limit.end(block, failed=failed)
            line.ended.set()

    async def _turn(self, block: str, line: _Line) -> None:
        """Wait until this address may fail once more."""
        give_up_at = time.monotonic() + self._longest
        # Only the first of a line looks at the limit; asyncio's lock lets the others in by the order of their coming.
        async with line.head:
            while not (taken := self.limit.begin(block)).is_allowed:
                if not self.limit.num_running(block) and time.monotonic() >= give_up_at:
                    raise self.limit.refusal(taken)
                # Cleared after the look, and without an await in between: an end that comes now is not missed.
                line.ended.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(line.ended.wait(), taken.wait_seconds)
