"""What is specific to SQLite.

WAL             readers never wait for the writer, and a killed process leaves nothing half-written
BEGIN IMMEDIATE a writer takes its turn when it begins; a transaction that reads first and writes later would fail
                immediately where another wrote in between, with any timeout. Python's driver begins transactions
                only before some statements, so its own are turned off, and the engine begins them itself.
synchronous     NORMAL: after a power cut the last moments may be missing, but the file is whole
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import ColumnElement, Connection, create_engine, event, literal_column
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from luthier.core.errors import LuthierError, RequestError, StorageFullError, UnreachableError, WorkError
from luthier.core.system.files import file_lock
from luthier.platform.db.backend import IS_WRITE, WAIT_SECONDS, Watch, WriteWait

BUSY_TIMEOUT_SECONDS: float = 30
_LOCK_TIMEOUT_SECONDS = 60


class Sqlite:
    """A database in one file.

    Args:
        url: An SQLAlchemy URL with the path of the file.

    Raises:
        RequestError: The folder of the file does not exist, or the path is a folder.
    """

    is_quick = True
    # Julian days to seconds; 2440587.5 is the Julian date of 1970-01-01. strftime('%s') would give whole seconds only.
    now: ColumnElement[float] = literal_column("(julianday('now') - 2440587.5) * 86400.0")

    def __init__(self, url: URL) -> None:
        self.path = Path(str(url.database))
        self.name = str(self.path)
        _check_place(self.path)
        _make_private(self.path)
        self.engine = create_engine(
            url,
            # In force from the first statement on, before `_connect` sets anything.
            connect_args={"timeout": BUSY_TIMEOUT_SECONDS},
            max_overflow=-1,  # one a thread at most: waiting to write does not block readers
        )
        event.listen(self.engine, "connect", _connect)
        event.listen(self.engine, "begin", self._begin)
        self._wait = WriteWait(lambda error: "locked" in str(error).lower())

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """A write transaction that one process at a time is in, for all that open the file."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        with file_lock(lock, what=f"the database {self.path}", timeout_seconds=_LOCK_TIMEOUT_SECONDS):
            # Stays in the file; set here alone, since two processes that set it together may collide.
            with self.engine.connect() as connection:
                # Through the driver: journal_mode cannot be changed inside the transaction that the engine would begin.
                driver = connection.connection.driver_connection
                assert driver is not None
                driver.execute("PRAGMA journal_mode = WAL").close()
            with self.engine.connect().execution_options(**{IS_WRITE: True}) as connection, connection.begin():
                yield connection

    def explain(self, error: DBAPIError) -> LuthierError | None:
        """What SQLite's words mean to a person, or None where they can only mean a bug of ours."""
        words = str(error.orig).lower()
        if "not a database" in words or "malformed" in words:
            return WorkError(
                f"the database {self.name} is damaged: {error.orig}",
                expected="a complete SQLite file",
                do=f"check the disk, restore a copy, or move {self.name} (and its -wal and -shm) away to start with an "
                f"empty one: adapters and reports in the runs folder stay as they are",
            )
        if "disk is full" in words:
            return StorageFullError(
                f"no room to write to the database {self.name}", expected="some free space", do="free some disk space"
            )
        if "readonly" in words or "unable to open" in words:
            return RequestError(
                f"the database {self.name} cannot be written: {error.orig}",
                expected="a file and a folder that this user may write",
                do="correct the permissions, or choose another home",
            )
        if "locked" in words:
            seconds = self._wait.locked_seconds()
            return UnreachableError(
                f"the database {self.name} was busy for {BUSY_TIMEOUT_SECONDS if seconds is None else seconds:.0f} s",
                expected="each process to write for moments only",
                do=f"look for a process that hangs with this file open (fuser {self.name}), then try again",
            )
        if "disk i/o error" in words:
            return WorkError(
                f"the disk under the database {self.name} failed: {error.orig}",
                expected="reads and writes that succeed",
                do="check the disk and its free space, then try again",
            )
        return None

    def _begin(self, connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get(IS_WRITE, False):
            connection.exec_driver_sql("BEGIN")
            return
        most: float | None = options.get(WAIT_SECONDS)
        seconds = self._wait.seconds(BUSY_TIMEOUT_SECONDS, most)
        # Each time: a pooled connection still has the time-out of the writer before.
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(seconds * 1000)}")
        with self._wait.turn(is_whole_wait=most is None):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def watch(self) -> Watch:
        """By `PRAGMA data_version`: it changes where another connection, of any process, has committed."""
        return _SqliteWatch(self.path)


class _SqliteWatch:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._num_opened = 0

    def look(self, key_id: str) -> tuple[Hashable, bool] | None:
        try:
            if self._connection is None:
                self._num_opened += 1
                # mode=ro never creates the file: a database that was removed is noticed, not replaced by an empty one.
                uri = f"{self._path.absolute().as_uri()}?mode=ro"
                # timeout 0: the look may run in an event loop and must not wait. isolation_level None: without a
                # transaction each statement sees the newest state.
                self._connection = sqlite3.connect(
                    uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False
                )
            # First the mark, then the key: in the other order a revocation in between would hide behind the newer mark.
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            its = self._connection.execute("SELECT revoked_at FROM api_keys WHERE key_id = ?", (key_id,)).fetchone()
        except sqlite3.Error:  # the next query reports what is wrong
            self.close()
            return None
        return (self._num_opened, version), its is None or its[0] is not None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise RequestError(
            f"the folder {path.parent} of the database does not exist",
            expected="a folder to keep it in",
            do="make the folder, or choose another home",
        )
    if path.is_dir():
        raise RequestError(f"the database {path} is a folder", expected="a file", do="choose another path")


_MAKING: Final = threading.Lock()


def _make_private(path: Path) -> None:
    """Make a database that is not there yet for this user alone: SQLite would make it for all, and takes the mode of
    the file for the others.

    One that is there is not opened, not even for a moment: where a process closes any descriptor of a file, it loses
    all its POSIX locks on it, those of its SQLite connections included. Another process would then take itself for the
    last user, and delete the write-ahead log that these connections write to (sqlite.org, "How To Corrupt An SQLite
    Database File", section 2.2).
    """
    # The lock: another thread of this process must not connect to the file between its making and this close.
    with _MAKING, contextlib.suppress(OSError):  # opening it says what is wrong
        # O_EXCL fails where there is a file, or any link; realpath, since a link may lead to where none is yet.
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _lower(value: object) -> str | None:
    return None if value is None else str(value).lower()


def _connect(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # The driver begins no transactions; `_begin` does. foreign_keys is off by default in every connection.
    connection.isolation_level = None
    # SQLite has capitals of ASCII alone: a search for `übung` would not find `Übung`, and PostgreSQL would.
    connection.create_function("lower", 1, _lower, deterministic=True)
    for pragma in ("foreign_keys = ON", f"busy_timeout = {round(BUSY_TIMEOUT_SECONDS * 1000)}", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}").close()
