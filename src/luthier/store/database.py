"""The database behind everything that Luthier remembers: short transactions, honest failures.

SQLite's own ways stand in `_configure_sqlite` and nowhere else:
    WAL             readers never wait for the writer, and a killed process leaves nothing half-written
    BEGIN IMMEDIATE a writer takes its turn when it begins; a transaction that reads first and writes later would fail
                    at once where another wrote in between, whatever the timeout. Python's driver begins transactions
                    only before some statements, so it is told to begin none, and the engine begins them itself.
    synchronous     NORMAL: after a power cut the last moments may be missing, but the file is whole
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError
from sqlalchemy.pool import ConnectionPoolEntry

from luthier.core.errors import ConflictError, LuthierError, RequestError, StorageFullError, WorkError
from luthier.store.schema import IS_WRITE, bring_up_to_date

BUSY_TIMEOUT_SECONDS = 30


class Database:
    """An open database whose schema is that of this version of Luthier. Safe to share between threads."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self.name = engine, name

    @classmethod
    def open(cls, url_or_path: str | Path) -> Database:
        """Open a database, making or migrating it where needed.

        url_or_path: a file, or an SQLAlchemy URL (`sqlite:///...`).

        Raises RequestError (an URL that this version cannot use, a folder that cannot be written), ConflictError (made
        by a newer Luthier), WorkError (damaged).
        """
        url = _as_url(url_or_path)
        path = Path(str(url.database))
        _check_place(path)
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
        _configure_sqlite(engine)
        database = cls(engine, str(path))
        try:
            with database._errors_explained():
                bring_up_to_date(engine, path)
        except BaseException:
            engine.dispose()
            raise
        return database

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the database throughout the block."""
        with self._errors_explained(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: all of the block takes effect, or, where it raises, none. Keep it short."""
        with self._errors_explained(), self._engine.connect() as plain:
            connection = plain.execution_options(**{IS_WRITE: True})
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Let go of all connections. The next use opens new ones."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # the callers know what they broke
        except DatabaseError as error:
            explained = _explain(self.name, error)
            if explained is None:
                raise
            raise explained from error


def _as_url(url_or_path: str | Path) -> URL:
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return URL.create("sqlite", database=str(url_or_path))
    try:
        url = make_url(url_or_path)
    except ArgumentError as error:
        raise RequestError(
            f"database {url_or_path!r} is not an URL", expected="sqlite:///path/to/file", do="correct the URL"
        ) from error
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise RequestError(
            f"database {url.render_as_string(hide_password=True)!r}",
            expected="a file that SQLite keeps: sqlite:///path/to/file (other databases are not supported yet)",
            do="give such an URL, or leave it out: then the database lies in the home folder",
        )
    return url


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise RequestError(
            f"the folder {path.parent} of the database does not exist",
            expected="a folder to keep it in",
            do="make the folder, or choose another home",
        )
    if path.is_dir():
        raise RequestError(f"the database {path} is a folder", expected="a file", do="choose another path")


def _configure_sqlite(engine: Engine) -> None:
    def connect(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        for pragma in ("foreign_keys = ON", f"busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}", "synchronous = NORMAL"):
            connection.execute(f"PRAGMA {pragma}").close()

    def begin(connection: Connection) -> None:
        is_write = connection.get_execution_options().get(IS_WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)


def _explain(name: str, error: DatabaseError) -> LuthierError | None:
    """What SQLite's words mean to a person, or None where they can only mean a bug of ours."""
    words = str(error.orig).lower()
    if "not a database" in words or "malformed" in words:
        return WorkError(
            f"the database {name} is damaged: {error.orig}",
            expected="a whole SQLite file",
            do=f"check the disk, restore a copy, or move {name} (and its -wal and -shm) away to start with an "
            f"empty one: adapters and reports in the runs folder stay as they are",
        )
    if "disk is full" in words:
        return StorageFullError(
            f"no room to write to the database {name}", expected="some free space", do="free some disk space"
        )
    if "readonly" in words or "unable to open" in words:
        return RequestError(
            f"the database {name} cannot be written: {error.orig}",
            expected="a file and a folder that this user may write",
            do="correct the permissions, or choose another home",
        )
    if "locked" in words:
        return ConflictError(
            f"the database {name} was busy for {BUSY_TIMEOUT_SECONDS} s",
            expected="each process to write for moments only",
            do="look for a process that hangs with this file open, then try again",
        )
    if "disk i/o error" in words:
        return WorkError(
            f"the disk under the database {name} failed: {error.orig}",
            expected="reads and writes that succeed",
            do="check the disk and its free space, then try again",
        )
    return None
