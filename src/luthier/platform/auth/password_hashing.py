"""Passwords: Argon2id hashes, the few threads that compute them, and the queue of sign-ins.

Argon2id of RFC 9106, section 4: 64 MiB, 3 passes, 4 lanes, its second recommended set of parameters. The reference
implementation (argon2-cffi) starts its own threads for each hash and joins them. OpenSSL's Argon2id takes its lanes
from one pool of threads for the whole process, in which two concurrent hashes wait for each other forever.

A hash takes 64 MiB and a core for a moment, and anyone may request one. So a server hashes in separate threads,
with a queue of bounded length: threads that answer other requests never wait for a hash.

queue of one address --its turn: a failure is left--> queue of the threads --> a thread checks the password

No more wrong passwords are hashed than the limit of failures allows, however many arrive together. Many right ones
together all pass: each gives back what it took, and the next one of its address continues with that.
"""

from __future__ import annotations

import asyncio
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import HashingError, InvalidHashError, VerificationError, VerifyMismatchError
from argon2.low_level import error_to_str
from argon2.profiles import RFC_9106_LOW_MEMORY

from luthier.core.errors import BusyError, RequestError, WorkError
from luthier.core.text.counted import counted
from luthier.platform.auth.rate_limiter import LONGEST_WAIT_SECONDS, FailureLimit, block_of

Found = TypeVar("Found")
LEAST_PASSWORD_CHARACTERS: Final = 10
MOST_PASSWORD_BYTES: Final = 1024
NUM_THREADS: Final = 2
"""Of a server for hashing, and how many hashes a process makes at a time: each takes 64 MiB."""
MOST_WAITING: Final = 128
MOST_WAITING_OF_ONE: Final = 64
"""From one address: no client fills the whole queue."""
_FIRST_GUESS_SECONDS: Final = 0.5
_NO_RESOURCES: Final = frozenset(map(error_to_str, (-22, -33)))
"""What argon2.h calls ARGON2_MEMORY_ALLOCATION_ERROR and ARGON2_THREAD_FAIL."""
_hasher: Final = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
_turns: Final = threading.BoundedSemaphore(NUM_THREADS)


def hashed(password: str) -> str:
    """The hash of a password, as it is stored: a PHC string with its own salt.

    Raises:
        RequestError: The password is too short or too long.
        BusyError: The machine has no memory for a hash.
    """
    if len(password) < LEAST_PASSWORD_CHARACTERS or len(_bytes(password)) > MOST_PASSWORD_BYTES:
        raise RequestError(
            f"a password of {len(password)} characters",
            expected=f"at least {LEAST_PASSWORD_CHARACTERS} characters, and at most {MOST_PASSWORD_BYTES:,} bytes",
            do="choose a longer one: a few words in a row are easy to remember",
        )
    # The commands hash as well, without `PasswordThreads`: the bound on memory holds for every caller.
    with _turns:
        try:
            return _hasher.hash(_bytes(password))
        except HashingError as error:
            raise _no_resources(error) from error


def fits(password: str, kept: str) -> bool:
    """Whether a password has this hash.

    Args:
        password: What was typed.
        kept: The stored PHC string.

    Raises:
        BusyError: The machine has no memory for a hash; the password may be right.
        WorkError: `kept` is no Argon2 hash; the password may be right.
    """
    # No such password was ever stored, and hashing megabytes would be work for free.
    if len(_bytes(password)) > MOST_PASSWORD_BYTES:
        return False
    with _turns:
        try:
            return _hasher.verify(kept, _bytes(password))
        # A subclass of VerificationError, so it comes first: the only one that means "wrong password".
        except VerifyMismatchError:
            return False
        except InvalidHashError as error:
            raise _no_hash() from error
        except VerificationError as error:
            raise (_no_resources(error) if str(error) in _NO_RESOURCES else _no_hash()) from error


def normal(text: str) -> str:
    """One form for what looks the same, as keyboards differ in it (RFC 8265, section 4.2: Unicode's form C)."""
    return unicodedata.normalize("NFC", text)


class PasswordThreads:
    """The threads of one server that hash passwords. Safe to share between event loops and threads.

    Args:
        num_threads: How many work at a time.
        most_waiting: The most that wait or are at work.
        most_waiting_of_one: The most of these that one name may have.
        clock: Seconds on a clock that is never set.
    """

    def __init__(
        self,
        *,
        num_threads: int = NUM_THREADS,
        most_waiting: int = MOST_WAITING,
        most_waiting_of_one: int = MOST_WAITING_OF_ONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="password")
        self._num_threads, self._most, self._most_of_one = num_threads, most_waiting, most_waiting_of_one
        self._clock, self._lock = clock, threading.Lock()
        self._there: Counter[str] = Counter()  # what waits or is at work, by name
        self._began: dict[int, float] = {}  # of what is at work
        self._seconds = _FIRST_GUESS_SECONDS

    async def run(self, name: str, work: Callable[[], Found]) -> Found:
        """What `work` returns or raises, done in one of the threads.

        Args:
            name: Whose work it is: an address or a member.
            work: What to do.

        Raises:
            BusyError: Too much waits already, in total or of this name.
        """
        self._enter(name)
        try:
            # The event loop continues meanwhile; an exception of the thread is raised here.
            return await asyncio.wrap_future(self._pool.submit(self._work, work))
        finally:
            self._leave(name)

    def longest_seconds(self) -> float:
        """How long the oldest work has been running; 0 where none is."""
        with self._lock:
            return self._clock() - min(self._began.values()) if self._began else 0.0

    def close(self) -> None:
        """Take no more work; waiting work is dropped, running work ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _enter(self, name: str) -> None:
        with self._lock:
            num_there, num_of_one = self._there.total(), self._there.get(name, 0)
            if num_there < self._most and num_of_one < self._most_of_one:
                self._there[name] += 1
                return
        # What waits ahead, at the average time of a hash, divided among the threads.
        seconds = num_there * self._seconds / self._num_threads
        raise BusyError(
            f"{counted(num_there, 'password waits', 'passwords wait')} to be checked, {num_of_one} of them yours",
            expected=f"at most {self._most}, {self._most_of_one} of them of one address or member",
            do=f"try again in {max(1, round(seconds))} s",
            retry_seconds=seconds,
        )

    def _work(self, work: Callable[[], Found]) -> Found:
        me, began = threading.get_ident(), self._clock()
        with self._lock:
            self._began[me] = began
        try:
            return work()
        finally:
            with self._lock:
                del self._began[me]
                self._seconds += 0.2 * (self._clock() - began - self._seconds)  # a moving average

    def _leave(self, name: str) -> None:
        with self._lock:
            self._there[name] -= 1
            if not self._there[name]:
                del self._there[name]


def _bytes(password: str) -> bytes:
    # Half a surrogate pair from a request must give a wrong password, not an exception.
    return normal(password).encode("utf-8", "surrogatepass")


def _no_resources(error: Exception) -> BusyError:
    return BusyError(
        f"a password cannot be checked now: {error}",
        expected="64 MiB of free memory and room for 4 threads",
        do="try again in a moment; if it happens again, free memory on the server",
    )


def _no_hash() -> WorkError:
    return WorkError(
        "the stored password of this member cannot be read",
        expected="an Argon2 hash in the PHC string format",
        do="give the member a new password: luthier users password NAME",
    )


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
            failure is left and no running sign-in may give one back.
    """

    def __init__(
        self, threads: PasswordThreads, limit: FailureLimit, *, longest_wait_seconds: float = LONGEST_WAIT_SECONDS
    ) -> None:
        self.limit, self._threads, self._longest = limit, threads, longest_wait_seconds
        self._lines: dict[str, _Line] = {}

    async def attempt(self, address: str, sign_in: Callable[[], Found | None]) -> Found | None:
        """What a sign-in returns, done in one of the threads.

        Args:
            address: The client's, for counting failures.
            sign_in: Checks the password; None counts as a failure.

        Raises:
            BusyError: Too many sign-ins wait already.
            TooManyFailuresError: The address has no failure left.
        """
        block = block_of(address)
        # Only where no attempt of the address is running: a running one may give its failure back.
        if block not in self._lines:
            self.limit.check(block)
        line = self._lines.setdefault(block, _Line())
        if line.num_there >= MOST_WAITING_OF_ONE:
            raise BusyError(
                f"{counted(line.num_there, 'sign-in')} from your address already in the queue",
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
        except Exception:  # such as a database that does not answer: the result is unknown
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
