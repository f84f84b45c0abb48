"""Passwords as they are kept (Argon2id), and the few threads that hash them.

Argon2id of RFC 9106, section 4: 64 MiB, 3 passes, 4 lanes, its second recommended set of parameters. The reference
implementation (argon2-cffi) starts threads of its own for each hash and joins them. OpenSSL's Argon2id takes its lanes
from one pool of threads for the whole process, in which two hashes at once wait for each other for ever.

A hash takes 64 MiB and a core for a moment, and anybody may ask for one. So a server hashes in threads of their own,
with a line of bounded length: those that answer all other requests never wait for a hash.
"""

from __future__ import annotations

import asyncio
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import HashingError, InvalidHashError, VerificationError, VerifyMismatchError
from argon2.low_level import error_to_str
from argon2.profiles import RFC_9106_LOW_MEMORY

from luthier.core.errors import BusyError, RequestError, WorkError

Found = TypeVar("Found")
LEAST_PASSWORD_CHARACTERS: Final = 10
MOST_PASSWORD_BYTES: Final = 1024
NUM_THREADS: Final = 2
"""Of a server for hashing, and how many hashes a process makes at a time: each takes 64 MiB."""
MOST_WAITING: Final = 128
MOST_WAITING_OF_ONE: Final = 64
"""From one address: nobody fills the whole line."""
_FIRST_GUESS_SECONDS: Final = 0.5
_NO_RESOURCES: Final = frozenset(map(error_to_str, (-22, -33)))
"""What argon2.h calls ARGON2_MEMORY_ALLOCATION_ERROR and ARGON2_THREAD_FAIL."""
_hasher: Final = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
_turns: Final = threading.BoundedSemaphore(NUM_THREADS)


def hashed(password: str) -> str:
    """The hash of a password, as it is stored: a PHC string with a salt of its own.

    Raises:
        RequestError: The password is too short or too long.
        BusyError: The machine has no memory for a hash.
    """
    if len(password) < LEAST_PASSWORD_CHARACTERS or len(_bytes(password)) > MOST_PASSWORD_BYTES:
        raise RequestError(
            f"a password of {len(password)} characters",
            expected=f"{LEAST_PASSWORD_CHARACTERS} characters or more, and at most {MOST_PASSWORD_BYTES:,} bytes",
            do="choose a longer one: some words in a row are easy to remember",
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
            # The event loop goes on meanwhile; an exception of the thread is raised here.
            return await asyncio.wrap_future(self._pool.submit(self._work, work))
        finally:
            self._leave(name)

    def longest_seconds(self) -> float:
        """How long the work that began first is under way; 0 where none is."""
        with self._lock:
            return self._clock() - min(self._began.values()) if self._began else 0.0

    def close(self) -> None:
        """Take no more work; what waits is given up, what is under way ends by itself."""
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
            f"{num_there} passwords wait to be checked, {num_of_one} of them yours",
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
        do="try again in a moment; where it stays so, free memory on the server",
    )


def _no_hash() -> WorkError:
    return WorkError(
        "the password of this member is kept in a form that cannot be read",
        expected="an Argon2 hash in the PHC string format",
        do="give the member another password: luthier users password NAME",
    )
