"""Runs read-only SQL in SQLite inside the sandboxed child. Started as a script; standard library only.

The result of a query is reported as two digests, of its rows in order and of the same rows sorted, so that results of
any size are compared without transferring them.

The clock is unavailable, since scores must not depend on the date: a query that depends on the current time is
rejected, and a script that fills a database sees a fixed time. Time zones are UTC on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

_MAX_ROWS = 100_000
_MAX_VALUE_BYTES = 1_000_000
_STEPS_BETWEEN_LOOKS = 1000
_MAX_HEAP_BYTES = 300_000_000
_MAX_ROUNDING: Final = 1e-4
"""Of a number to ten digits that counts as whole: fractions of large numbers do not."""
# Functions that load code or are non-deterministic.
_REFUSED_FUNCTIONS = {"load_extension", "fts3_tokenizer", "random", "randomblob"}
# SQLite's functions of date and time (https://sqlite.org/lang_datefunc.html), and what its keywords call.
_CLOCK_FUNCTIONS: Final = (
    "date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff",
    "current_date", "current_time", "current_timestamp",
)  # fmt: skip
_CALLS_CLOCK: Final = re.compile(rf"\b(?:{'|'.join(_CLOCK_FUNCTIONS)})\b", re.IGNORECASE)
_SAYS_NOW: Final = re.compile(r"'now'|\bcurrent_(?:date|time|timestamp)\b", re.IGNORECASE)
_BUILDING_TIME: Final = "2000-01-01 00:00:00"
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_BUILDING = _READING | {
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_TRANSACTION,
    sqlite3.SQLITE_REINDEX,
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_CREATE_VIEW,
    sqlite3.SQLITE_ALTER_TABLE,
    sqlite3.SQLITE_DROP_TABLE,
}
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: _MAX_VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 1_000_000,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}


def main() -> None:
    """Lock; then, for each line with a database and queries, report the result of each query."""
    lock = runpy.run_path(str(Path(__file__).with_name("inside.py")))["lock"]
    # Opened before the restrictions, while duplicating and opening are still allowed.
    replies = os.fdopen(os.dup(1), "w")
    # `localtime` must not depend on the machine; time zone files are unreadable after the restrictions.
    os.environ["TZ"] = "UTC"
    clock: Any = time  # Windows has no tzset, and this process does not run there
    clock.tzset()
    in_force = lock(json.loads(sys.stdin.readline())["policy"])
    print(json.dumps({"in_force": in_force}), file=replies, flush=True)
    key: Any = None
    database: _Opened | None = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            # A database is cached between lines: tasks are grouped by database, and building one costs more than a
            # query.
            if database is None or key != (job["script"], job["file"]):
                key, database = (job["script"], job["file"]), _Opened(job["script"], job["file"])
            hides, seconds = job["hides_words"], job["seconds"]
            reply: dict[str, Any] = {
                "results": [_run(database.of(query), query, seconds, hides) for query in job["queries"]]
            }
        except (sqlite3.Error, sqlite3.Warning, MemoryError, ValueError, OSError) as error:
            database, reply = None, {"broken": _kind(error) if job["hides_words"] else f"{_kind(error)}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


class _Database(sqlite3.Connection):
    """A connection whose date and time functions can be cut off from the clock (`hold_clock`)."""

    has_asked_clock = False
    building_time: str | None = None
    """The current time while a script builds the database; None: using it is an error."""

    def hold_clock(self) -> None:
        """Wrap SQLite's functions so that they cannot access the current time."""
        native = sqlite3.connect(":memory:", isolation_level=None)
        for name in _CLOCK_FUNCTIONS:
            self.create_function(name, -1, self._held(native, name), deterministic=True)

    def _held(self, native: sqlite3.Connection, name: str) -> Callable[..., Any]:
        computes = name.removeprefix("current_").replace("timestamp", "datetime")

        def call(*given: object) -> Any:
            # strftime has its format first; a missing time value means the current time, also before `subsec`.
            head, times = (given[:1], given[1:]) if name == "strftime" else ((), given)
            if not times or str(times[0]).lower() in ("subsec", "subsecond"):
                times = ("now", *times)
            is_now = [isinstance(one, str) and one.lower() == "now" for one in times]
            if any(is_now) and self.building_time is None:
                self.has_asked_clock = True
                raise ValueError("the current time is not available")
            values = [*head, *(self.building_time if now else one for one, now in zip(times, is_now, strict=True))]
            return native.execute(f"SELECT {computes}({', '.join('?' * len(values))})", values).fetchone()[0]

        return call


class _Opened:
    """The database of a task. Two connections for a file: custom functions are refused in the views of a file."""

    def __init__(self, script: str, file: str) -> None:
        self._script, self._file = script, file
        self._plain = _open(script, file)
        self._held: _Database | None = None if file else self._plain

    def of(self, query: str) -> _Database:
        """The connection for a query: the one without a clock if the query calls a date or time function."""
        if not self._file or not _CALLS_CLOCK.search(query):
            return self._plain
        if self._held is None:
            self._held = _open(self._script, self._file, holds_clock=True)
        return self._held


def _open(script: str, file: str, *, holds_clock: bool = False) -> _Database:
    """A database in memory, filled by the script; or a file of this folder, unmodified and unlocked."""
    # Names come from the parent, but a path would leave the folder where no chroot is in force.
    if "/" in file:
        raise ValueError("a database is a name in this folder")
    # immutable=1: no locks and no journal, which the sandbox could not create.
    # Not by `as_uri`, which imports a module when it is first called, from 3.14 on: here nothing can be read any more.
    place = f"file://{quote(str(Path.cwd() / file))}?mode=ro&immutable=1" if file else ":memory:"
    database = sqlite3.connect(place, uri=True, isolation_level=None, cached_statements=0, factory=_Database)
    for pragma in ("temp_store = MEMORY", f"hard_heap_limit = {_MAX_HEAP_BYTES}", "mmap_size = 0"):
        database.execute(f"PRAGMA {pragma}")
    # A file may be malicious (https://sqlite.org/security.html): its views may not call functions with side effects,
    # and its pages are validated. A script is trusted, and its views may call the functions of `hold_clock`.
    for pragma in (f"trusted_schema = {'OFF' if file else 'ON'}", "cell_size_check = ON"):
        database.execute(f"PRAGMA {pragma}")
    for limit, value in _LIMITS.items():
        database.setlimit(limit, value)
    # Text that is not UTF-8 is still text.
    database.text_factory = lambda raw: raw.decode(errors="surrogateescape")
    if holds_clock or not file:
        database.hold_clock()
    if not file:
        database.building_time = _BUILDING_TIME
        # The script that fills a database is trusted and long; queries get the small limit back.
        database.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000_000)
        database.set_authorizer(_only(_BUILDING))
        database.executescript(script)
        database.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _LIMITS[sqlite3.SQLITE_LIMIT_SQL_LENGTH])
        database.building_time = None
    database.set_authorizer(_only(_READING, _clock_views(database) if file else frozenset()))
    return database


def _clock_views(database: sqlite3.Connection) -> frozenset[str]:
    """Names of the views of a file that use the current time; SQLite's own functions are called in them."""
    try:
        found = database.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'view'").fetchall()
    except sqlite3.DatabaseError:  # not a database: each query reports it
        return frozenset()
    return frozenset(str(name).lower() for name, text in found if _SAYS_NOW.search(str(text)))


def _only(actions: set[int], clock_views: frozenset[str] = frozenset()) -> Any:
    def decide(action: int, _: str | None, second: str | None, __: str | None, view: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION:
            name = str(second).lower()
            is_clock = name in _CLOCK_FUNCTIONS and str(view).lower() in clock_views
            return sqlite3.SQLITE_DENY if name in _REFUSED_FUNCTIONS or is_clock else sqlite3.SQLITE_OK
        return sqlite3.SQLITE_OK if action in actions else sqlite3.SQLITE_DENY

    return decide


def _run(database: _Database, query: str, seconds: float, hides_words: bool) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    # Called every few virtual machine steps: the only way to stop a query from the same thread.
    database.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
    is_compiled, database.has_asked_clock = False, False
    try:
        if hides_words:
            # Compile errors of SQLite quote only the query; runtime errors may quote any value.
            database.execute(f"EXPLAIN {query}").close()
            is_compiled = True
        cursor = database.execute(query)
        if cursor.description is None:
            return {"error": "is not a query that returns rows"}
        # One digest per row, so that memory is bounded by rows, and equal multisets have equal sorted digests.
        rows = [_digest(json.dumps([_cell(value) for value in row])) for row in cursor.fetchmany(_MAX_ROWS)]
        if cursor.fetchone() is not None:
            return {"error": f"gives more than {_MAX_ROWS:,} rows"}
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        if database.has_asked_clock:
            return {"error": "depends on the current time, by which its rows would change from day to day"}
        if str(error) == "interrupted":
            return {"error": "timeout"}
        return {"error": f"fails while it runs: {_kind(error)}" if is_compiled else f"{_kind(error)}: {error}"[:300]}
    except MemoryError:
        return {"error": "memory"}
    # The number of columns is part of the digest: results without rows would otherwise all be equal.
    width = str(len(cursor.description)).encode()
    in_order, in_any = (_digest(width + b"".join(order)).hex() for order in (rows, sorted(rows)))
    return {"in_order": in_order, "in_any_order": in_any, "num_rows": len(rows)}


def _kind(error: BaseException) -> str:
    """The kind of an error, by the name of SQLite's code where it has one."""
    code = getattr(error, "sqlite_errorname", None)
    return f"{type(error).__name__} ({code})" if code and code != "SQLITE_ERROR" else type(error).__name__


def _digest(data: str | bytes) -> bytes:
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).digest()


def _cell(value: object) -> object:
    """1 and 1.0 are the same; fractions are, up to ten digits, because sums depend on their order in the last ones."""
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        # A sum in another order may be 0.9999999999999999: to ten digits that is 1, too.
        digits = f"{value:.10g}"
        whole = float(digits)
        return int(whole) if whole.is_integer() and abs(value - whole) <= _MAX_ROUNDING else digits
    # Each type has a different JSON form, so that the text '1' and the number 1 differ.
    return {"bytes": value.hex()} if isinstance(value, bytes) else [value] if isinstance(value, str) else value


if __name__ == "__main__":
    main()
