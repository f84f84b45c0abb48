"""Runs SQL in SQLite inside of the locked-down child, reading only. Started as a script; standard library only.

The result of a query is reported as two digests, of its rows in order and of the same rows sorted, so that results of
any size are compared without being handed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

_MAX_ROWS = 100_000
_MAX_VALUE_BYTES = 1_000_000
_STEPS_BETWEEN_LOOKS = 1000
_MAX_HEAP_BYTES = 300_000_000
# Functions that load code, or give another result each time.
_REFUSED_FUNCTIONS = {"load_extension", "fts3_tokenizer", "random", "randomblob"}
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
    # Opened before the lock, while duplicating and opening are still free of restrictions.
    replies = os.fdopen(os.dup(1), "w")
    in_force = lock(json.loads(sys.stdin.readline())["policy"])
    print(json.dumps({"in_force": in_force}), file=replies, flush=True)
    key: Any = None
    database: sqlite3.Connection | None = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            # A database is kept between lines: tasks come grouped by database, and building one costs more than a
            # query.
            if database is None or key != (job["script"], job["file"]):
                key, database = (job["script"], job["file"]), _open(job["script"], job["file"])
            hides, seconds = job["hides_words"], job["seconds"]
            reply: dict[str, Any] = {"results": [_run(database, query, seconds, hides) for query in job["queries"]]}
        except (sqlite3.Error, sqlite3.Warning, MemoryError, ValueError, OSError) as error:
            database, reply = None, {"broken": _kind(error) if job["hides_words"] else f"{_kind(error)}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def _open(script: str, file: str) -> sqlite3.Connection:
    """A database in memory, filled by the script; or a file of this folder, as it is and without being locked."""
    # Names come from the parent, but a path would leave the folder where no chroot is in force.
    if "/" in file:
        raise ValueError("a database is a name in this folder")
    # immutable=1: no locks and no journal, which the sandbox could not create.
    place = f"{(Path.cwd() / file).as_uri()}?mode=ro&immutable=1" if file else ":memory:"
    database = sqlite3.connect(place, uri=True, isolation_level=None, cached_statements=0)
    for pragma in ("temp_store = MEMORY", f"hard_heap_limit = {_MAX_HEAP_BYTES}", "mmap_size = 0"):
        database.execute(f"PRAGMA {pragma}")
    # A file may be made to do harm (https://sqlite.org/security.html): its views call no function with side effects,
    # and its pages are checked before they are believed.
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON"):
        database.execute(f"PRAGMA {pragma}")
    for limit, value in _LIMITS.items():
        database.setlimit(limit, value)
    # Text that is no UTF-8 is still a text.
    database.text_factory = lambda raw: raw.decode(errors="surrogateescape")
    if not file:
        # The script that fills a database is trusted and long; queries get the small limit back.
        database.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000_000)
        database.set_authorizer(_only(_BUILDING))
        database.executescript(script)
        database.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _LIMITS[sqlite3.SQLITE_LIMIT_SQL_LENGTH])
    database.set_authorizer(_only(_READING))
    return database


def _only(actions: set[int]) -> Any:
    def decide(action: int, first: str | None, second: str | None, *_where: str | None) -> int:  # noqa: ARG001
        if action == sqlite3.SQLITE_FUNCTION:
            return sqlite3.SQLITE_DENY if str(second).lower() in _REFUSED_FUNCTIONS else sqlite3.SQLITE_OK
        return sqlite3.SQLITE_OK if action in actions else sqlite3.SQLITE_DENY

    return decide


def _run(database: sqlite3.Connection, query: str, seconds: float, hides_words: bool) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    # Called every so many virtual-machine steps: the only way to stop a query from the same thread.
    database.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
    is_compiled = False
    try:
        if hides_words:
            # What SQLite says of a query that it only compiles quotes the query; when it runs, it may quote any value.
            database.execute(f"EXPLAIN {query}").close()
            is_compiled = True
        cursor = database.execute(query)
        if cursor.description is None:
            return {"error": "is no query that gives rows"}
        # One digest a row, so that memory is bounded by rows, and equal multisets have equal sorted digests.
        rows = [_digest(json.dumps([_cell(value) for value in row])) for row in cursor.fetchmany(_MAX_ROWS)]
        if cursor.fetchone() is not None:
            return {"error": f"gives more than {_MAX_ROWS:,} rows"}
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
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
        return int(value) if value.is_integer() else f"{value:.10g}"
    # Each type in another JSON form, so that the text '1' and the number 1 differ.
    return {"bytes": value.hex()} if isinstance(value, bytes) else [value] if isinstance(value, str) else value


if __name__ == "__main__":
    main()
