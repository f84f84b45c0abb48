"""What differs between one kind of database and another, as the rest of the store sees it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final, Protocol

from sqlalchemy import ColumnElement, Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from luthier.core.errors import LuthierError

IS_WRITE: Final = "luthier_is_write"
"""The execution option that asks for a transaction that writes."""


class Backend(Protocol):
    """One kind of database. Its engine begins a transaction that reads, or, where `IS_WRITE` asks for it, writes.

    A transaction that reads sees one state of the database throughout. Those that write stand in a queue: what one of
    them has read nobody else changes before it has ended.
    """

    name: str
    """What messages call it: never with a password in it."""
    engine: Engine
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
