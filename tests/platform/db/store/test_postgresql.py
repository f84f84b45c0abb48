"""A real PostgreSQL server: the same promises as SQLite's, and what only a server can do, such as go away."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from tests.fixtures.forked_children import SessionForkServer

from luthier.core.errors import ConflictError, RequestError, UnreachableError, WorkError
from luthier.platform.db import postgresql as module
from luthier.platform.db.database import Database
from luthier.testing.servers import PASSWORD, PostgresqlServer

INSERT = text("INSERT INTO artifacts VALUES (:key, 'b', 1, 'c')")
COUNT = text("SELECT count(*) FROM artifacts")


@pytest.fixture
def url(postgresql: PostgresqlServer) -> str:
    return postgresql.new_database()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with Database.open(url) as database:
        yield database


def count(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(COUNT).scalar() or 0)


def test_without_the_driver_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pg8000", None)
    with pytest.raises(RequestError, match="pg8000") as caught:
        Database.open("postgresql://user:secret@127.0.0.1/name")
    assert "luthier[postgresql]" in caught.value.do
    assert "secret" not in str(caught.value)


def test_opened_twice_it_is_made_once(url: str) -> None:
    with Database.open(url) as database, database.write() as connection:
        connection.execute(INSERT, {"key": "a"})
    with Database.open(url) as database:
        assert count(database) == 1


def test_many_may_make_it_at_once(url: str) -> None:
    def open_and_count(_: int) -> int:
        with Database.open(url) as database:
            return count(database)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(open_and_count, range(6))) == [0] * 6


def test_a_name_never_shows_the_password(database: Database) -> None:
    assert PASSWORD not in database.name
    assert database.name.startswith("postgresql://luthier:***@127.0.0.1")


def test_a_block_that_raises_writes_nothing(database: Database) -> None:
    def write_and_fail() -> None:
        with database.write() as connection:
            connection.execute(INSERT, {"key": "a"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert count(database) == 0


def test_a_reader_sees_one_state_and_does_not_wait(database: Database) -> None:
    with database.read() as reader:
        assert reader.execute(COUNT).scalar() == 0
        with database.write() as writer:
            writer.execute(INSERT, {"key": "a"})
        assert reader.execute(COUNT).scalar() == 0
    assert count(database) == 1


def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(ProgrammingError, match="read-only"), database.read() as reader:
        reader.execute(INSERT, {"key": "a"})


def test_what_a_writer_has_read_nobody_changes_before_it_ends(database: Database) -> None:
    """Read, think, write, by many at once: without the queue most of these would count to the same number."""

    def add_one(_: int) -> None:
        with database.write() as connection:
            found = connection.execute(COUNT).scalar()
            connection.execute(INSERT, {"key": str(found)})  # the key is unique: two that read the same would collide

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_one, range(40)))
    assert count(database) == 40


def test_who_waits_too_long_for_a_writer_is_told_so(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_SECONDS", 0.2)
    inside, release = threading.Event(), threading.Event()

    def hold() -> None:
        with database.write() as connection:
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            inside.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(30)
    try:
        with pytest.raises(UnreachableError, match="was busy"), database.write():
            pass
    finally:
        release.set()
        holder.join()


def test_a_writer_that_was_stopped_for_good_holds_nobody_up(url: str, fork_server: SessionForkServer) -> None:
    child = (
        "import sys, time; from luthier.platform.db import postgresql; from luthier.platform.db.database import "
        "Database\n"
        "database = Database.open(sys.argv[1]); postgresql.BUSY_TIMEOUT_SECONDS = 0.3\n"
        "with database.write() as connection:\n    print('inside', flush=True); time.sleep(60)\n"
    )
    with fork_server.script(child, url) as stopped:
        assert stopped.stdout.readline() == "inside\n"
        with Database.open(url) as database, database.write() as connection:  # waits for 0.3 s, not for a minute
            connection.execute(INSERT, {"key": "a"})
        stopped.kill()


def test_a_server_that_comes_back_is_found_again(postgresql: PostgresqlServer, database: Database) -> None:
    with database.write() as connection:
        connection.execute(INSERT, {"key": "a"})
    postgresql.stop()
    try:
        with pytest.raises(WorkError, match="does not answer"):
            count(database)
    finally:
        postgresql.start()
    assert count(database) == 1


def test_a_wrong_password_and_a_missing_database_are_told_without_the_password(postgresql: PostgresqlServer) -> None:
    for url in (
        postgresql.new_database().replace(PASSWORD, "wrongly"),
        postgresql.url("nobody_made_this"),
    ):
        with pytest.raises(RequestError, match="refuses the connection") as caught:
            Database.open(url)
        assert "wrongly" not in str(caught.value)
        assert PASSWORD not in str(caught.value)


def test_a_newer_database_and_one_of_something_else_are_refused(postgresql: PostgresqlServer) -> None:
    newer = postgresql.new_database()
    with Database.open(newer) as database, database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConflictError, match="schema 9999, made by a newer version of Luthier"):
        Database.open(newer)
    other = postgresql.new_database()
    with Database.open(other) as database, database.write() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(WorkError, match="tables of something else"):
        Database.open(other)


def test_a_bug_of_ours_stays_a_bug(database: Database) -> None:
    with pytest.raises(ProgrammingError, match="no_table"), database.read() as connection:
        connection.execute(text("SELECT * FROM no_table"))


def test_a_restart_between_two_uses_is_not_noticed(postgresql: PostgresqlServer, database: Database) -> None:
    assert count(database) == 0
    postgresql.stop("fast")
    postgresql.start()
    assert count(database) == 0


def test_with_patience_a_restart_is_waited_for(postgresql: PostgresqlServer, url: str) -> None:
    with Database.open(url, patience_seconds=60) as database:
        postgresql.stop()
        starter = threading.Timer(1.0, postgresql.start)
        starter.start()
        assert count(database) == 0
        starter.join()
