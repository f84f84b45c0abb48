"""The interface of database kinds to the stores, and how long a write transaction waits for its turn.

A process that hangs with the database open blocks all others. The first ones wait the whole time, for it may be a
moment's work. Once one has waited so long in vain, those behind it wait briefly, until one gets a turn: else each
request would hold a thread for the whole time, and those that only read would have none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol

from sqlalchemy import ColumnElement, Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from luthier.core.errors import LuthierError

IS_WRITE: Final = "luthier_is_write"
"""The execution option for a transaction that writes."""


WAIT_SECONDS: Final = "luthier_wait_seconds"
"""The execution option that says how long a transaction that writes waits for its turn at most."""


class Watch(Protocol):
    """A separate connection that only reports whether anything has changed since the last look.

    For one thread at a time. Never waits for a writer.
    """

    def look(self, key_id: str) -> tuple[Hashable, bool] | None:
        """A mark, and whether this key has been revoked (or is missing), in this order; None where this is not known.

        The same mark twice means that no transaction has taken effect between the two looks.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; another look opens a new one, whose marks equal none of the old one's."""
        ...


class Backend(Protocol):
    """One kind of database. Its engine begins a transaction that reads, or, with `IS_WRITE`, writes.

    A transaction that reads sees one state of the database throughout. Those that write are serialised: what one of
    them has read is not changed by others before it has ended.
    """

    name: str
    """What messages call it: never with a password in it."""
    engine: Engine
    is_quick: bool
    """Whether a few rows are read in microseconds, without waiting: an event loop may then read them itself."""
    now: ColumnElement[float]
    """Seconds since 1970 by the database's own clock, at the moment of asking."""

    def migrating(self) -> AbstractContextManager[Connection]:
        """A transaction that writes and that one process at a time is in, to make or change tables."""
        ...

    def explain(self, error: DBAPIError) -> LuthierError | IntegrityError | None:
        """What the database's words mean to a person, or None where they can only mean a bug of ours.

        IntegrityError for a broken constraint that the driver has called something else.
        """
        ...

    def watch(self) -> Watch:
        """A new watch; nothing is opened before its first look."""
        ...


BRIEF_SECONDS: Final = 1.0


class WriteWait:
    """The turns of one process. Thread-safe.

    Args:
        is_busy: Whether an error says that another transaction writes.
        clock: Seconds on a clock that is never set.
    """

    def __init__(self, is_busy: Callable[[Exception], bool], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_busy, self._clock, self._lock = is_busy, clock, threading.Lock()
        self._since: float | None = None

    def seconds(self, usual: float, most: float | None = None) -> float:
        """How long to wait now, in seconds.

        Args:
            usual: The wait while no one has waited in vain.
            most: An upper limit for this transaction; None for none.
        """
        with self._lock:
            found = usual if self._since is None else min(usual, BRIEF_SECONDS)
        return found if most is None else min(found, most)

    @contextmanager
    def turn(self, *, is_whole_wait: bool) -> Iterator[None]:
        """Wait for a turn in the block.

        Args:
            is_whole_wait: Whether a wait in vain means that no one gets a turn, and not only that this one was short.
        """
        began = self._clock()
        try:
            yield
        except Exception as error:
            if is_whole_wait and self._is_busy(error):
                with self._lock:
                    # The earliest wait counts, so that the message says how long the database has really been locked.
                    self._since = began if self._since is None else self._since
            raise
        with self._lock:
            self._since = None

    def locked_seconds(self) -> float | None:
        """For how long no one has got a turn; None where that is not known."""
        with self._lock:
            return None if self._since is None else self._clock() - self._since
