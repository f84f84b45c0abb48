"""Authentication by key, with rate limits: a server caches keys, so that not every request reads the database.

A key is looked up again after `REMEMBERED_SECONDS`, by a single request: the others are let in during the lookup,
for `WHILE_ASKED_SECONDS` at most. So long, both together, may a revoked key still be let in. Clients that come with
wrong keys are slowed down by their address. Keys that this process has let in before are looked up in spite of that:
no client can lock out the others behind the same address. A standalone server is open to all, or to a fixed list of
keys in addition to those of the home (`StaticKeyAuthenticator`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from luthier.core.access import ApiKey, Caller
from luthier.platform.auth.rate_limiter import FailureLimit, Taken, TokenBuckets, TooManyFailuresError
from luthier.platform.auth.service import digest_of
from luthier.platform.home.context import Context

log = logging.getLogger("luthier.service")

REMEMBERED_SECONDS: Final = 3.0
WHILE_ASKED_SECONDS: Final = 1.0
FAILURES_PER_MINUTE: Final = 30
MOST_KEYS: Final = 10_000
MOST_WRONG_KEYS: Final = 1_000
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class AuthResult:
    """The result of checking a key.

    Attributes:
        caller: Whose key it is; None if it is not valid.
        requests_per_minute: The rate limit of the key; None for no limit.
        wait_seconds: Above 0 if the key was not checked, because of too many failures from that address.
    """

    caller: Caller | None
    requests_per_minute: int | None = None
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A key that lets somebody in; the times are the process's own."""

    given: AuthResult
    until: float
    until_asked: float


class Authenticator:
    """Checks API keys for one server process. Thread-safe, with bounded memory."""

    anybody: Caller | None = None
    """The caller of every request, where no key is needed."""

    def __init__(self, context: Context, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._context, self._clock, self._lock = context, clock, threading.Lock()
        self._right: OrderedDict[str, _Remembered] = OrderedDict()  # by digest
        self._wrong: OrderedDict[str, float] = OrderedDict()
        self._requests = TokenBuckets(clock=clock)
        self._failures = FailureLimit("wrong keys", FAILURES_PER_MINUTE, clock=clock)

    def recall(self, key: str) -> AuthResult | None:
        """The cached result for a key; None where it has to be looked up."""
        digest, now = digest_of(key), self._clock()
        with self._lock:
            if (known := self._right.get(digest)) is not None and now < known.until:
                self._right.move_to_end(digest)
                return known.given
            # This request looks it up; with the new `until` all others are let in meanwhile, so one thread is used,
            # not all.
            if known is not None and now < known.until_asked:
                self._right[digest] = replace(known, until=known.until_asked)
                return None
            # Wrong keys are remembered as well: a client that repeats one costs neither a thread nor a failure each
            # time.
            if now < self._wrong.get(digest, 0.0):
                return AuthResult(caller=None)
        return None

    def look_up(self, key: str, address: str) -> AuthResult:
        """Look a key up in the database.

        Args:
            key: The key as it came.
            address: The client's address, for counting failures.
        """
        digest = digest_of(key)
        with self._lock:
            was_right = digest in self._right
        if was_right:
            return self._look_up(digest, address)
        try:
            with self._failures.attempt(address) as attempt:
                given = self._look_up(digest, address)
                attempt.failed = given.caller is None
        except TooManyFailuresError as error:
            return AuthResult(caller=None, wait_seconds=error.retry_seconds)
        return given

    def _look_up(self, digest: str, address: str) -> AuthResult:
        # Before the question: a revocation while the database answers must not extend the time.
        asked_at = self._clock()
        found, now = self._context.access.key_and_now(digest)
        given = _auth_result(found, now)
        with self._lock:
            if given.caller is None or found is None:
                self._right.pop(digest, None)
                _remember(self._wrong, digest, asked_at + REMEMBERED_SECONDS, MOST_WRONG_KEYS)
            else:
                # The key's end on this process's clock: the wall clock may be set, `asked_at` is monotonic.
                ends_at = math.inf if found.expires_at is None else asked_at + found.expires_at - now
                until = min(ends_at, asked_at + REMEMBERED_SECONDS)
                known = _Remembered(given, until, min(ends_at, until + WHILE_ASKED_SECONDS))
                _remember(self._right, digest, known, MOST_KEYS)
        if given.caller is None:
            what = "an unknown key" if found is None else f"the revoked or expired key {found.key_id}"
            log.info("refused %s from %s", what, address)
        return given

    def count(self, given: AuthResult) -> Taken | None:
        """Count a request of a key that was let in; None where it may come as often as it likes."""
        if given.caller is None or given.caller.key_id is None or given.requests_per_minute is None:
            return None
        return self._requests.take(given.caller.key_id, given.requests_per_minute)

    def count_refused(self, given: AuthResult, num_requests: int) -> None:
        """Count work that was refused as further requests, whether the key has them left or not.

        Args:
            given: The result of checking the key.
            num_requests: How many requests the work is worth.
        """
        caller = given.caller
        if caller is not None and caller.key_id is not None and given.requests_per_minute is not None:
            self._requests.owe(caller.key_id, given.requests_per_minute, num_requests)

    def forget_all(self) -> None:
        """Look every key up again: after a key was revoked by way of this process."""
        with self._lock:
            for digest, known in self._right.items():
                # Not removed: that the key was right before still spares its owner the limit on failures.
                self._right[digest] = replace(known, until=-math.inf, until_asked=-math.inf)


def _auth_result(found: ApiKey | None, now: float) -> AuthResult:
    if found is None or found.revoked_at is not None or (found.expires_at is not None and found.expires_at <= now):
        return AuthResult(caller=None)
    caller = Caller(project_id=found.project_id, scopes=found.scopes, key_id=found.key_id, name=found.name)
    return AuthResult(caller=caller, requests_per_minute=found.requests_per_minute)


def _remember(known: OrderedDict[str, Value], digest: str, value: Value, most: int) -> None:
    known[digest] = value
    known.move_to_end(digest)
    if len(known) > most:
        known.popitem(last=False)


class StaticKeyAuthenticator(Authenticator):
    """Accepts the keys that an `Authenticator` accepts, and a fixed list of others.

    Args:
        context: The open home.
        key_digests: SHA-256 digests of the other keys.
        is_open: Whether requests without a valid key are accepted too.
    """

    def __init__(self, context: Context, key_digests: Collection[str], *, is_open: bool) -> None:
        super().__init__(context)
        self._digests = frozenset(key_digests)
        self.anybody = Caller(scopes=("infer",), name="anybody on this machine") if is_open else None

    def recall(self, key: str) -> AuthResult | None:
        """The cached result for a key; None where it has to be looked up."""
        if digest_of(key) in self._digests:
            return AuthResult(caller=Caller(scopes=("infer",), name="a key of the file"))
        return super().recall(key)
