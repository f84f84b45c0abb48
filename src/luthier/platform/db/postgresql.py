"""What is specific to PostgreSQL.

reads       REPEATABLE READ, READ ONLY: one state throughout a block
writes      READ COMMITTED behind one advisory lock of the transaction, so that writers are serialised as they are
            on SQLite, and what one of them has read is not changed before it has ended. The lock is released when the
            transaction ends, however it ends.
time-outs   a process that is stopped in the middle of a transaction loses it after half a minute: the queue continues
            without it
pre-ping    a connection that a restart of the server has cut is opened again when it is next taken
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, event, literal_column, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError

from luthier.core.errors import LuthierError, RequestError, StorageFullError, UnreachableError
from luthier.platform.db.backend import IS_WRITE, WAIT_SECONDS, Watch, WriteWait

BUSY_TIMEOUT_SECONDS: float = 30
_CONNECT_TIMEOUT_SECONDS = 10
# The name of the lock that writers queue for; any number that no other program in this database takes.
_WRITERS = 0x6C757468
_STATE = "C"  # pg8000 gives an error as a mapping by the letters of the protocol: C is the SQLSTATE, M the message


class Postgresql:
    """A database on a PostgreSQL server."""

    is_quick = False
    # clock_timestamp, not now(): the latter stays at the start of the transaction, however long it waited for its turn.
    now: ColumnElement[float] = literal_column("extract(epoch from clock_timestamp())::float8")

    def __init__(self, url: URL) -> None:
        self.name = url.set(drivername="postgresql").render_as_string(hide_password=True)
        self.engine = create_engine(
            url.set(drivername="postgresql+pg8000"),
            connect_args={"timeout": _CONNECT_TIMEOUT_SECONDS, "application_name": "luthier"},
            pool_pre_ping=True,
        )
        event.listen(self.engine, "begin", self._begin)
        # 55P03 is lock_not_available: lock_timeout ran out.
        self._wait = WriteWait(lambda error: isinstance(error, DBAPIError) and _sqlstate(error)[0] == "55P03")

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """A write transaction: the queue of the writers is lock enough, since tables are made inside transactions."""
        with self.engine.connect().execution_options(**{IS_WRITE: True}) as connection, connection.begin():
            yield connection

    def explain(self, error: DBAPIError) -> LuthierError | IntegrityError | None:
        """What PostgreSQL's words mean to a person, or None where they can only mean a bug of ours."""
        state, words = _sqlstate(error)
        if state.startswith("23") and error.orig is not None:  # pg8000 knows the broken uniqueness alone
            return IntegrityError(error.statement, error.params, error.orig)
        # Class 08: connection exceptions. Class 57: operator intervention, such as a shutdown of the server.
        if isinstance(error, InterfaceError) or state[:2] in ("08", "57"):
            return UnreachableError(
                f"the database {self.name} does not answer: {words}",
                expected="a PostgreSQL server that takes connections at that address",
                do="start it, or correct host and port; what was written before is safe, and nothing of this was",
            )
        # Wrong password, no such user or rule for it, no such database.
        if state in ("28P01", "28000", "3D000"):
            return RequestError(
                f"the database {self.name} refuses the connection: {words}",
                expected="a database of that name, and a user and password that it knows",
                do="correct the URL, or make user and database on the server",
            )
        # insufficient_privilege
        if state == "42501":
            return RequestError(
                f"the database {self.name} cannot be written: {words}",
                expected="a user that may make and write tables in it",
                do="grant it the rights, or give another user in the URL",
            )
        # Lock time-out, cancelled statement, time-out of an idle transaction.
        if state in ("55P03", "57014", "25P03"):
            seconds = self._wait.locked_seconds()
            return UnreachableError(
                f"the database {self.name} was busy for {BUSY_TIMEOUT_SECONDS if seconds is None else seconds:.3g} s",
                expected="each process to write for moments only",
                do="look for a process that hangs in a transaction (pg_stat_activity), then try again",
            )
        # A zero byte in a text (22021) or in a value of JSON (22P05): SQLite keeps it.
        if state in ("22021", "22P05"):
            return RequestError(
                f"a text that the database {self.name} cannot keep: {words}",
                expected="text without zero bytes",
                do="take them out",
            )
        # Class 53: insufficient resources (disk, memory, connections).
        if state.startswith("53"):
            return StorageFullError(
                f"the server of the database {self.name} has no room: {words}",
                expected="free disk space and free connections",
                do="free some, then try again",
            )
        return None

    def _begin(self, connection: Connection) -> None:
        """Called inside the transaction that the driver is about to begin: these statements are its first."""
        options, busy = connection.get_execution_options(), round(BUSY_TIMEOUT_SECONDS * 1000)
        if options.get(IS_WRITE, False):
            most: float | None = options.get(WAIT_SECONDS)
            wait = round(self._wait.seconds(BUSY_TIMEOUT_SECONDS, most) * 1000)
            # LOCAL: in force until the transaction ends, so a pooled connection carries none of it over.
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {wait}")
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {busy}")
            with self._wait.turn(is_whole_wait=most is None):
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _WRITERS})
        else:
            # Must be the first statement: PostgreSQL refuses it after a query.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def watch(self) -> Watch:
        """By the text of the snapshot: while it is the same, the same transactions are seen as having taken effect."""
        return _PostgresqlWatch(self.engine)


_LOOK = "SELECT pg_current_snapshot()::text, EXISTS (SELECT 1 FROM api_keys WHERE key_id = %s AND revoked_at IS NULL)"


class _PostgresqlWatch:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Any = None  # of the driver
        self._num_opened = 0

    def look(self, key_id: str) -> tuple[Hashable, bool] | None:
        try:
            if self._connection is None:
                self._num_opened += 1
                taken = self._engine.raw_connection()
                # Out of the pool for good: its autocommit mode must not reach those who take connections from there.
                taken.detach()
                self._connection = taken.dbapi_connection
                # Without it the first look would open a transaction that stays open, idle, between looks.
                self._connection.autocommit = True
            cursor = self._connection.cursor()
            cursor.execute(_LOOK, (key_id,))
            row = cursor.fetchone()
        except Exception:  # noqa: BLE001 - of the driver, the pool or the socket: the ordinary way explains it
            self.close()
            return None
        # The number of the connection is part of the mark, so that no mark of an old connection equals one of a new
        # one.
        return (self._num_opened, row[0]), not row[1]

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):  # it may be cut already
                self._connection.close()
            self._connection = None


def _sqlstate(error: DBAPIError) -> tuple[str, str]:
    """SQLSTATE and message, if the driver gives them."""
    # pg8000 raises a mapping for errors of the server and plain text for those of the socket.
    given: Any = error.orig.args[0] if error.orig is not None and error.orig.args else error.orig
    if isinstance(given, dict):
        return str(given.get(_STATE, "")), str(given.get("M", given))
    return "", str(given)
