"""Opening, migrating, failing: the database as a whole."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from tests.fixtures.forked_children import SessionForkServer

from luthier.core.errors import ConflictError, LuthierError, RequestError, StorageFullError, UnreachableError, WorkError
from luthier.platform.db.database import Database

pytestmark = pytest.mark.usefixtures("real_migration")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """SQLite's own promises; those of PostgreSQL stand in test_postgresql.py."""
    with Database.open(tmp_path / "luthier.db") as database:
        yield database


OPENER = """
import sys
from pathlib import Path
from sqlalchemy import text
from luthier.platform.db.database import Database
with Database.open(Path(sys.argv[1])) as database, database.read() as connection:
    print(connection.execute(text("SELECT count(*) FROM runs")).scalar())
"""
WRITER = """
import sys
from pathlib import Path
from luthier.core.events import StepDone
from luthier.platform.db.database import Database
from luthier.features.runs.store import RunStore
runs = RunStore(Database.open(Path(sys.argv[1])))
print("ready", flush=True)
for step in range(int(sys.argv[2]), 10**9):
    runs.append(sys.argv[3], StepDone(step=step, epoch=0.0, loss=1.0, learning_rate=1e-4, gradient_norm=1.0,
                                      num_tokens=8, num_trained_tokens=4, seconds=0.1))
    print(step, flush=True)
"""


def test_opening_makes_the_file_once_and_leaves_it_alone_after(tmp_path: Path) -> None:
    path = tmp_path / "luthier.db"
    with Database.open(path) as database, database.write() as connection:
        connection.execute(
            text("INSERT INTO artifacts (sha256, kind, num_bytes, created_at) VALUES ('a', 'b', 1, 'c')")
        )
    with Database.open(f"sqlite:///{path}") as database, database.read() as connection:
        assert connection.execute(text("SELECT num_bytes FROM artifacts")).scalar() == 1


def test_nothing_to_do_needs_no_alembic(tmp_path: Path) -> None:
    Database.open(tmp_path / "luthier.db").close()
    code = (
        "import sys; from pathlib import Path; from luthier.platform.db.database import Database;"
        "Database.open(Path(sys.argv[1])).close(); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "luthier.db")], check=False).returncode == 0


@pytest.mark.usefixtures("real_sync")
def test_the_settings_that_safety_rests_on(database: Database) -> None:
    with database.read() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30_000, "synchronous": 1}


def test_a_block_that_raises_writes_nothing(database: Database) -> None:
    def write_and_fail() -> None:
        with database.write() as connection:
            connection.execute(
                text("INSERT INTO artifacts (sha256, kind, num_bytes, created_at) VALUES ('a', 'b', 1, 'c')")
            )
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM artifacts")).scalar() == 0


def test_a_writer_takes_its_turn_before_it_reads(tmp_path: Path, database: Database) -> None:
    """With a deferred BEGIN the second writer could begin, read, and then fail forever."""
    with database.write(), closing(sqlite3.connect(tmp_path / "luthier.db", timeout=0)) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.execute("SELECT count(*) FROM runs").fetchall()  # readers do not wait


def test_a_reader_sees_one_state(database: Database) -> None:
    with database.read() as reader:
        assert reader.execute(text("SELECT count(*) FROM artifacts")).scalar() == 0
        with database.write() as writer:
            writer.execute(
                text("INSERT INTO artifacts (sha256, kind, num_bytes, created_at) VALUES ('a', 'b', 1, 'c')")
            )
        assert reader.execute(text("SELECT count(*) FROM artifacts")).scalar() == 0


@pytest.mark.parametrize("damage", ["rubbish", "header kept"])
def test_a_damaged_file_says_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "luthier.db"
    if damage == "rubbish":
        path.write_bytes(b"this is no database at all" * 100)
    else:
        Database.open(path).close()
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + random.Random(0).randbytes(len(whole) - 100))
    before = path.read_bytes()
    with pytest.raises(WorkError, match="is damaged") as caught:
        Database.open(path)
    assert "move" in caught.value.do
    assert path.read_bytes() == before


def test_damage_found_later_is_told_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "luthier.db"
    Database.open(path).close()
    whole = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as plain:
        page = plain.execute("SELECT rootpage FROM sqlite_master WHERE name = 'runs'").fetchone()[0]
        size = plain.execute("PRAGMA page_size").fetchone()[0]
    whole[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(whole)
    with Database.open(path) as database, pytest.raises(WorkError, match="is damaged"), database.read() as connection:
        connection.execute(text("SELECT * FROM runs")).all()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "luthier.db"
    with Database.open(path) as database, database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConflictError, match="schema 9999, made by a newer version of Luthier"):
        Database.open(path)


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "luthier.db"
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("CREATE TABLE photos (id INTEGER)")
        plain.commit()
    with pytest.raises(WorkError, match="tables of something else: photos"):
        Database.open(path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://user:secret@host/db", "a file that SQLite keeps"),
        ("postgresql://user:secret@host", "a file that SQLite keeps"),
        ("://user:secret@host", "not an URL"),
        ("sqlite:///:memory:", "a file that SQLite keeps"),
        ("nonsense://", "a file that SQLite keeps"),
    ],
)
def test_an_url_that_cannot_be_used_is_refused(url: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        Database.open(url)
    assert "secret" not in str(caught.value)


def test_a_missing_folder_and_a_folder_as_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        Database.open(tmp_path / "none" / "luthier.db")
    with pytest.raises(RequestError, match="is a folder"):
        Database.open(tmp_path)


def test_many_processes_may_make_it_at_once(tmp_path: Path, fork_server: SessionForkServer) -> None:
    openers = [fork_server.script(OPENER, tmp_path / "luthier.db") for _ in range(8)]
    assert [opener.communicate() for opener in openers] == [("0\n", "")] * 8


OTHER = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as other:
    other.execute("INSERT INTO artifacts (sha256, kind, num_bytes, created_at) VALUES ('b', 'b', 1, 'c')")
other.close()
"""


def test_opening_it_again_keeps_the_locks_of_open_connections(tmp_path: Path, database: Database) -> None:
    """Without them the other process deletes the write-ahead log, and what is written here later is lost."""
    path, log = tmp_path / "luthier.db", tmp_path / "luthier.db-wal"
    count, kinds = text("SELECT count(*) FROM artifacts"), "(sha256, kind, num_bytes, created_at)"
    with database.read() as connection:
        assert connection.execute(count).scalar() == 0
    before = log.stat().st_ino
    with Database.open(path) as again:
        subprocess.run([sys.executable, "-c", OTHER, str(path)], check=True)
        assert log.stat().st_ino == before
        with database.write() as connection:
            connection.execute(text(f"INSERT INTO artifacts {kinds} VALUES ('a', 'b', 1, 'c')"))
        with again.read() as connection:
            assert connection.execute(count).scalar() == 2


def test_a_link_to_where_no_database_is_yet_makes_it_there(tmp_path: Path) -> None:
    link, file = tmp_path / "luthier.db", tmp_path / "disk" / "real.db"
    file.parent.mkdir()
    link.symlink_to(file)
    Database.open(link).close()
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o600


def test_two_processes_write_at_once_and_lose_nothing(tmp_path, runs, record, plan, fork_server) -> None:  # type: ignore[no-untyped-def]
    ids = ["run-20261125-093000-aaaaaa", "run-20261125-093000-bbbbbb"]
    for run_id in ids:
        runs.create(record(run_id), plan)
    writers = [fork_server.script(WRITER, tmp_path / "luthier.db", 1, run_id) for run_id in ids]
    last = []
    for writer in writers:
        lines = [writer.stdout.readline() for _ in range(200)]
        last.append(int(lines[-1]))
    for writer, run_id, step in zip(writers, ids, last, strict=True):
        writer.kill()
        writer.communicate()
        steps = [event.step for event in runs.events(run_id)]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= step


def test_a_killed_writer_leaves_a_whole_database(tmp_path, runs, record, plan, fork_server) -> None:  # type: ignore[no-untyped-def]
    """What was said to be written is there, once and in order, whenever the kill comes."""
    run_id = "run-20261125-093000-aaaaaa"
    runs.create(record(run_id), plan)
    next_step = 1
    for number in range(6):
        with fork_server.script(WRITER, tmp_path / "luthier.db", next_step, run_id) as writer:
            assert writer.stdout.readline() == "ready\n"
            for _ in range(3):
                writer.stdout.readline()
            time.sleep(0.003 * number)
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split("\n")
        confirmed = max([next_step + 2, *(int(line) for line in rest[:-1])])
        steps = [event.step for event in runs.events(run_id)]
        assert steps == list(range(1, len(steps) + 1))
        assert confirmed <= len(steps) <= confirmed + 1
        next_step = len(steps)  # trained again after the crash: replaced, not doubled
    with closing(sqlite3.connect(tmp_path / "luthier.db")) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert plain.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("database disk image is malformed", WorkError),
        ("database or disk is full", StorageFullError),
        ("attempt to write a readonly database", RequestError),
        ("unable to open database file", RequestError),
        ("database is locked", UnreachableError),
        ("disk I/O error", WorkError),
    ],
)
def test_what_sqlite_says_is_told_in_our_words(database: Database, words: str, kind: type[LuthierError]) -> None:
    with pytest.raises(kind) as caught, database.read():
        raise OperationalError("SELECT 1", {}, sqlite3.OperationalError(words))
    assert database.name in caught.value.came
    assert caught.value.do


def test_a_bug_of_ours_stays_a_bug(database: Database) -> None:
    with pytest.raises(OperationalError, match="no such table"), database.read() as connection:
        connection.execute(text("SELECT * FROM no_table"))
