"""What differs between one kind of database and another, as the rest of the store sees it."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Final, Protocol

from sqlalchemy import ColumnElement, Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from luthier.core.errors import LuthierError

IS_WRITE: Final = "luthier_is_write"
"""The execution option that asks for a transaction that writes."""


WAIT_SECONDS: Final = "luthier_wait_seconds"
"""The execution option that says how long a transaction that writes waits for its turn at most."""


class Watch(Protocol):
    """A connection of its own that tells whether anything has changed since it was last looked at, and no more.

    For one thread at a time. Never waits for a writer.
    """

    def look(self, key_id: str) -> tuple[Hashable, bool] | None:
        """A mark, and whether this key has been revoked (or is not there), in this order; None where nobody can say.

        Whoever gets the same mark twice knows that no transaction has taken effect between the two looks.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; another look opens a new one, whose marks equal none of the old one's."""
        ...


class Backend(Protocol):
    """One kind of database. Its engine begins a transaction that reads, or, where `IS_WRITE` asks for it, writes.

    A transaction that reads sees one state of the database throughout. Those that write are serialised: what one of
    them has read nobody else changes before it has ended.
    """

    name: str
    """What messages call it: never with a password in it."""
    engine: Engine
    is_quick: bool
    """Whether a few rows are read in microseconds, waiting for nobody: an event loop may then read them itself."""
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
