"""The database: opened, brought to the schema of this version, and used in short transactions.

SQLite in one file by default, PostgreSQL by URL; what differs between the two is in `sqlite.py` and `postgresql.py`.
Work that takes long is retried while a database restarts, so that a short outage does not lose results.

The schema of an older database is upgraded; where there is nothing to do, this reads one row:

no tables      all tables of the code are made together
0001 to 0009   from before 0.1.0: what is missing is added, and nothing else had changed
0010 and on    the migrations since the baseline of 0.1.0
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from sqlalchemy import BigInteger, Connection, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from luthier.core.errors import ConflictError, LuthierError, RequestError, UnreachableError, WorkError
from luthier.core.system.extras import missing_extra
from luthier.platform.db.backend import IS_WRITE, WAIT_SECONDS, Backend, Watch
from luthier.platform.db.server_version import newer_server, own_version
from luthier.platform.db.sqlite import Sqlite
from luthier.platform.db.tables import SCHEMA_VERSION, metadata

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
_UNRELEASED: Final = frozenset(f"{number:04}" for number in range(1, 10))


def bring_up_to_date(backend: Backend) -> None:
    """Make or migrate a database where its version is not `SCHEMA_VERSION`.

    One process migrates, the others wait for it. All changes take effect together, or none does.

    Raises:
        ConflictError: The database was made by a newer version of Luthier.
        WorkError: The database holds tables of something else.
    """
    with backend.engine.connect() as connection:
        # The common case takes no lock, so that many processes can open a current database together.
        if version_of(connection) == SCHEMA_VERSION:
            return
    with backend.migrating() as connection:
        # Again, now under the lock: another process may have migrated while this one waited.
        version = version_of(connection)
        if version != SCHEMA_VERSION:
            _check_origin(connection, backend.name, version)
            _migrate(connection)


def version_of(connection: Connection) -> str | None:
    """The revision of the database, or None where it has none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if version is None else str(version)


def _check_origin(connection: Connection, place: str, version: str | None) -> None:
    # No revision and no table is a new database. Tables without one belong to another program.
    if version is None:
        if names := inspect(connection).get_table_names():
            raise WorkError(
                f"{place} holds tables of something else: {', '.join(names[:5])}",
                expected="a database that Luthier made, or an empty one",
                do="move it away, or choose another home or database",
            )
        return
    known = {file.stem.partition("_")[0].removeprefix("v") for file in (MIGRATIONS / "versions").glob("v*.py")}
    if version not in known | _UNRELEASED:
        raise ConflictError(
            f"the database {place} has schema {version}, made by a newer version of Luthier",
            expected=f"schema {SCHEMA_VERSION} or older",
            do="update Luthier, or choose another home or database",
        )


def _migrate(connection: Connection) -> None:
    # Alembic costs a quarter of a second to load, and is needed once a version.
    from alembic import command

    config, version = _config(connection), version_of(connection)
    if version is None:
        metadata.create_all(connection)
    elif version in _UNRELEASED:
        _add_what_is_missing(connection, version)
    else:
        command.upgrade(config, "head")
        return
    # purge: the revision of a database from before 0.1.0 names a migration that no longer exists.
    command.stamp(config, "head", purge=True)


def _add_what_is_missing(connection: Connection, version: str) -> None:
    """Add the tables, columns and indexes that a database from before 0.1.0 lacks."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    operations, found = Operations(MigrationContext.configure(connection)), inspect(connection)
    if version < "0004" and connection.dialect.name == "postgresql":  # SQLite's integers have 64 bits already
        operations.alter_column("artifacts", "num_bytes", type_=BigInteger())
    for table in metadata.sorted_tables:
        if not found.has_table(table.name):
            table.create(connection)
            continue
        columns = {column["name"] for column in found.get_columns(table.name)}
        for column in table.columns:
            if column.name not in columns:
                # A copy, since a column object belongs to one table. New columns allow NULL or have a server default.
                operations.add_column(table.name, column._copy())
        indexes = {index["name"] for index in found.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in indexes:
                index.create(connection)


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    # Alembic reads its configuration by ConfigParser, to which `%` is the start of an interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


_ASK_AGAIN_SECONDS: Final = 0.5


class OutdatedError(ConflictError):
    """A newer version of Luthier has migrated the database, or has started a server on it."""


class _Held(threading.local):
    """The connections that a thread holds open around its reads and its writes."""

    reading: Connection | None = None
    writing: Connection | None = None


class Database:
    """An open database whose schema is that of this version of Luthier. Safe to share between threads."""

    def __init__(self, backend: Backend, patience_seconds: float = 0.0) -> None:
        self._backend, self._engine, self.name, self.now = backend, backend.engine, backend.name, backend.now
        self._watches: list[Watch] = []
        self.is_quick = backend.is_quick
        self._patience_seconds, self._held = patience_seconds, _Held()

    @classmethod
    def open(cls, url_or_path: str | Path, *, patience_seconds: float = 0.0) -> Database:
        """Open a database, making or migrating it where needed.

        Args:
            url_or_path: A file, or an SQLAlchemy URL (`sqlite:///...`, `postgresql://user:password@host/name`).
            patience_seconds: How long to retry, now and before each transaction, where it does not answer.

        Raises:
            RequestError: This version cannot use the URL, or the folder cannot be written.
            ConflictError: The database was made by a newer version of Luthier.
            UnreachableError: The server does not answer.
            WorkError: The database is damaged, or holds tables of another program.
        """
        database = cls(_backend_of(_as_url(url_or_path)), patience_seconds)
        try:
            with database._begun(is_write=False):
                pass  # waits until it answers
            with database._errors_explained():
                bring_up_to_date(database._backend)
        except BaseException:
            # Also for KeyboardInterrupt: a pool that is left behind would keep the file, or a server's connection,
            # open.
            database.close()
            raise
        return database

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the database throughout the block: that of a `snapshot` around it.

        Inside a `transaction` it sees what this thread has written there.
        """
        # Thread-local: a snapshot belongs to the thread that opened it, others read the newest state.
        if (held := self._held.reading) is not None:
            with self._errors_explained():
                yield held
            return
        with self._begun(is_write=False) as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that this thread reads in the block it reads of one state, in one transaction."""
        with self.read() as connection:
            # Snapshots nest: the inner one joins the outer transaction and hands it back.
            before, self._held.reading = self._held.reading, connection
            try:
                yield
            finally:
                self._held.reading = before

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: all of the block takes effect, or, where it raises, none. Keep it short.

        Inside a `transaction` it is a part of that one, and takes effect with it.
        """
        if (held := self._held.writing) is None:
            with self._begun(is_write=True) as connection:
                yield connection
            return
        # A savepoint: code that handles the error of a part, such as a name that is taken, continues with the rest.
        with self._errors_explained(), held.begin_nested():
            yield held

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction for all that this thread reads and writes in the block, through any store. Keep it short.

        All of it takes effect, or, where the block raises, none of it.
        """
        with self.write() as connection:
            before = self._held.reading, self._held.writing
            self._held.reading = self._held.writing = connection
            try:
                yield
            finally:
                self._held.reading, self._held.writing = before

    @property
    def is_in_transaction(self) -> bool:
        """Whether this thread is inside a `transaction`."""
        return self._held.writing is not None

    def check_write(self, within_seconds: float) -> None:
        """Begin a transaction that writes, and end it.

        Args:
            within_seconds: How long to wait for its turn.

        Raises:
            UnreachableError: Its turn did not come in time.
        """
        with self._errors_explained(), self._engine.connect() as connection:
            options: dict[str, Any] = {IS_WRITE: True, WAIT_SECONDS: within_seconds}
            with connection.execution_options(**options).begin():
                pass

    def clock(self, connection: Connection) -> float:
        """Seconds since 1970 by the database's own clock, in the transaction of a connection."""
        return float(connection.execute(select(self.now)).scalar_one())

    def schema_version(self) -> str | None:
        """The revision of the tables, read from the database now; the code's is `SCHEMA_VERSION`."""
        with self.read() as connection:
            return version_of(connection)

    def check_version(self, connection: Connection) -> None:
        """Check in a transaction that neither the tables nor the server of this database are of a newer version.

        Raises:
            OutdatedError: A newer version has migrated the tables, or has started a server.
        """
        if (found := version_of(connection)) != SCHEMA_VERSION:
            raise OutdatedError(
                f"the database {self.name} has schema {found} by now, and this process is of schema {SCHEMA_VERSION}",
                expected="servers and workers of one version",
                do="stop it, install the version of the others, and start it again",
            )
        if (server := newer_server(connection)) is not None:
            raise OutdatedError(
                f"the server of {self.name} is of version {server}, and this process is of {own_version()}",
                expected="servers and workers of one version",
                do=f"stop it, install version {server}, and start it again",
            )

    def watch(self) -> Watch:
        """A fast check of whether the database has changed. It is closed with the database."""
        made = self._backend.watch()
        self._watches.append(made)
        return made

    def close(self) -> None:
        """Let go of all connections. The next use opens new ones."""
        self._engine.dispose()
        for watch in self._watches:
            watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _begun(self, *, is_write: bool) -> Iterator[Connection]:
        with self._errors_explained(), ExitStack() as stack:
            yield self._begin(stack, is_write=is_write)

    def _begin(self, stack: ExitStack, *, is_write: bool) -> Connection:
        """Begin a transaction that ends with the stack. Only this is tried again: of what follows, some may be done."""
        give_up_at = time.monotonic() + self._patience_seconds
        while True:
            try:
                with ExitStack() as opened:
                    connection = opened.enter_context(self._engine.connect())
                    opened.enter_context(connection.execution_options(**{IS_WRITE: is_write}).begin())
                    # Only once the transaction has begun does the caller's stack own it; a failed try closes its
                    # connection here.
                    stack.push(opened.pop_all())
                    return connection
            except DBAPIError as error:
                # A wrong password or a damaged file does not get better by waiting.
                is_away = isinstance(self._backend.explain(error), UnreachableError)
                if not is_away or time.monotonic() >= give_up_at:
                    raise
                time.sleep(_ASK_AGAIN_SECONDS)

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # the callers know what they broke
        except PoolTimeoutError as error:
            raise UnreachableError(
                f"all connections of this process to the database {self.name} were in use for too long",
                expected="each to be needed for moments only",
                do="try again; where it stays so, look for a process that hangs in a transaction",
            ) from error
        except DBAPIError as error:
            explained = self._backend.explain(error)
            if explained is None:
                raise
            raise explained from error
        except StatementError as error:
            if not isinstance(error.orig, LuthierError):
                raise
            raise error.orig from error  # of a column, such as a name that is too long


def _as_url(url_or_path: str | Path) -> URL:
    # URL.create does not parse the path: make_url would read `?` and `%` in it as syntax.
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return URL.create("sqlite", database=str(url_or_path))
    try:
        return make_url(url_or_path)
    except ArgumentError as error:
        raise RequestError(
            "the database's address is not an URL",  # not shown: it may hold a password
            expected="sqlite:///path/to/file or postgresql://user:password@host/name",
            do="correct the URL",
        ) from error


def _backend_of(url: URL) -> Backend:
    kind = url.get_backend_name()
    # In memory each connection would get its own empty database, and child processes none.
    if kind == "sqlite" and url.database and url.database != ":memory:":
        return Sqlite(url)
    if kind == "postgresql" and url.database:
        return _postgresql(url)
    raise RequestError(
        f"database {url.render_as_string(hide_password=True)!r}",
        expected="a file that SQLite keeps (sqlite:///path/to/file), or a PostgreSQL database "
        "(postgresql://user:password@host/name)",
        do="give such an URL, or leave it out: then the database is in the home folder",
    )


def _postgresql(url: URL) -> Backend:
    try:
        import pg8000  # noqa: F401
    except ImportError as error:
        name = url.render_as_string(hide_password=True)
        raise missing_extra("postgresql", f"the database {name}", "pg8000") from error
    from luthier.platform.db.postgresql import Postgresql

    return Postgresql(url)


Found = TypeVar("Found")
MAX_SECONDS: Final = 120.0
_LONGEST_WAIT_SECONDS: Final = 2.0


def retry_unreachable(do: Callable[[], Found], max_seconds: float = MAX_SECONDS) -> Found:
    """Call `do` again until the database answers, with exponential backoff of at most two seconds.

    Args:
        do: What to call. It must be idempotent: a call that failed may have taken effect.
        max_seconds: How long to retry, in seconds.

    Raises:
        UnreachableError: The database did not answer within `max_seconds`.
    """
    deadline, wait = time.monotonic() + max_seconds, 0.1
    while True:
        try:
            return do()
        except UnreachableError:
            # Raise now rather than sleep past the deadline.
            if time.monotonic() + wait >= deadline:
                raise
        time.sleep(wait)
        wait = min(_LONGEST_WAIT_SECONDS, 2 * wait)
