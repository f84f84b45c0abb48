"""A watch says the same for exactly as long as no transaction has taken effect; a snapshot is one state."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import IntegrityError

from luthier.core.access import ApiKey
from luthier.core.errors import LuthierError
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.db.tables import job_events
from luthier.platform.jobs.events import JobEventStore

Tell = Callable[[str], bool]


@pytest.fixture
def tell(database: Database) -> Tell:
    """Commits something by another connection than that of a watch."""
    store = JobEventStore(database)
    return lambda code: store.append("job-1", code, "a message")


def mark_of(database: Database) -> Callable[[], object]:
    watch = database.watch()

    def look() -> object:
        seen = watch.look("key-1")
        assert seen is not None
        return seen[0]

    return look


def test_the_mark_changes_with_every_commit_and_with_nothing_else(database: Database, tell: Tell) -> None:
    mark = mark_of(database)
    seen = [mark()]
    for number in range(3):
        assert mark() == mark() == seen[-1], "looking changes nothing"
        JobEventStore(database).page("job-1")
        assert mark() == seen[-1], "nor does reading"
        assert tell(f"code-{number}")
        assert mark() not in seen
        seen.append(mark())


def test_what_is_not_committed_changes_nothing_until_it_is(database: Database) -> None:
    mark = mark_of(database)
    before = mark()
    values = {"event_id": "e", "job_id": "j", "code": "c", "created_at": 0.0, "level": "info", "message": "m"}
    with database.write() as connection:
        connection.execute(insert(job_events).values(**values))
        within = mark()
        JobEventStore(database).page("j")
    assert mark() not in (before, within)
    with pytest.raises(IntegrityError), database.write() as connection:  # two at once, of which one is there already
        connection.execute(insert(job_events), [values | {"event_id": "f", "code": "d"}, values])
    assert len(JobEventStore(database).page("j")[0]) == 1


def test_two_watches_and_a_closed_one_know_nothing_of_each_other(database: Database, tell: Tell) -> None:
    watch, other = database.watch(), database.watch()
    first = watch.look("key-1")
    assert first is not None
    tell("a")
    seen = other.look("key-1")
    watch.close()
    tell("b")
    again = watch.look("key-1")
    assert again is not None
    assert again[0] != first[0]
    assert other.look("key-1") != seen


def test_a_key_is_revoked_at_once(database: Database) -> None:
    access, watch = AccessStore(database), database.watch()
    assert watch.look("key-1") is not None
    assert (watch.look("key-1") or (None, None))[1] is True, "one that is not there lets nobody in"
    access.add_key(ApiKey(key_id="key-1", project_id="default", name="k", scopes=("read",)), "digest")
    assert (watch.look("key-1") or (None, None))[1] is False
    access.revoke("key-1")
    assert (watch.look("key-1") or (None, None))[1] is True


def test_a_snapshot_is_one_state_and_of_one_thread(database: Database, tell: Tell) -> None:
    store = JobEventStore(database)
    tell("a")
    with database.snapshot():
        assert len(store.page("job-1")[0]) == 1
        tell("b")
        assert len(store.page("job-1")[0]) == 1
        with database.snapshot():
            assert len(store.page("job-1")[0]) == 1
    assert len(store.page("job-1")[0]) == 2
    with pytest.raises(LuthierError), database.snapshot():
        store.page("job-1", after="no-such-event")
    assert len(store.page("job-1")[0]) == 2


def test_a_watch_never_waits_for_a_writer_and_says_so_where_it_cannot_look(tmp_path: Path) -> None:
    place = tmp_path / "luthier.db"
    with Database.open(place) as database:
        watch = database.watch()
        with database.write():
            assert watch.look("key-1") is not None
        with sqlite3.connect(place) as other:
            other.execute("ALTER TABLE api_keys RENAME TO lost")
        other.close()
        assert watch.look("key-1") is None


def test_a_watch_outlives_a_cut_connection(database: Database) -> None:
    if database.is_quick:
        pytest.skip("a file has no connection to be cut")
    watch = database.watch()
    first = watch.look("key-1")
    with database.read() as connection:
        its = "datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%pg_current_snapshot%'"
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {its}"))
    assert watch.look("key-1") is None
    again = watch.look("key-1")
    assert again is not None
    assert cast(tuple[object, bool], first)[0] != again[0]
