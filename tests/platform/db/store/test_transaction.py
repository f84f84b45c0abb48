"""One transaction for many stores: all of it takes effect, or none; on both databases."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import ConflictError
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.db.monitor_state import WatchStore


def killed_after(database: Database, write: Callable[[], None]) -> None:
    with database.transaction():
        write()
        raise RuntimeError("killed")


def test_all_of_it_takes_effect_or_none(database: Database) -> None:
    watches, access = WatchStore(database), AccessStore(database)

    def write() -> None:
        access.add_project("proj-1", "one")
        watches.put("proj-1", "kind", "", "1")
        assert watches.get("proj-1", "kind") == "1", "a block reads what it has written"

    with pytest.raises(RuntimeError, match="killed"):
        killed_after(database, write)
    assert watches.get("proj-1", "kind") is None
    assert [one.name for one in access.projects() if one.project_id == "proj-1"] == []
    with database.transaction():
        access.add_project("proj-1", "one")
        watches.put("proj-1", "kind", "", "2")
    assert watches.get("proj-1", "kind") == "2"
    assert [one.name for one in access.projects() if one.project_id == "proj-1"] == ["one"]


def test_others_see_it_once_it_has_ended(database: Database) -> None:
    watches = WatchStore(database)
    with ThreadPoolExecutor(1) as pool:
        with database.transaction():
            watches.put("default", "kind", "", "1")
            assert database.is_in_transaction
            assert not pool.submit(lambda: database.is_in_transaction).result(), "it belongs to its thread"
            assert pool.submit(watches.get, "default", "kind").result() is None
        assert pool.submit(watches.get, "default", "kind").result() == "1"
    assert not database.is_in_transaction


def test_a_part_that_fails_and_is_handled_leaves_the_rest(database: Database) -> None:
    watches, access = WatchStore(database), AccessStore(database)
    access.add_project("proj-1", "one")
    with database.transaction():
        watches.put("default", "kind", "", "before")
        with pytest.raises(ConflictError):
            access.add_project("proj-2", "one")
        with pytest.raises(RuntimeError, match="killed"):
            killed_after(database, lambda: watches.put("default", "kind", "", "inner"))
        assert watches.get("default", "kind") == "before"
        with database.transaction():
            watches.put("default", "other", "", "inner")
    assert (watches.get("default", "kind"), watches.get("default", "other")) == ("before", "inner")


def test_inside_a_snapshot_it_reads_the_newest_state(database: Database) -> None:
    watches = WatchStore(database)
    with database.snapshot():
        assert watches.get("default", "kind") is None
        with database.transaction():
            watches.put("default", "kind", "", "1")
            assert watches.get("default", "kind") == "1"
        assert watches.get("default", "kind") is None, "the snapshot stays one state"
    assert watches.get("default", "kind") == "1"


def test_a_project_that_is_gone_has_no_documents_instead_of_endless_tries(database: Database) -> None:
    with pytest.raises(IntegrityError):
        WatchStore(database).put("proj-gone", "kind", "", "1")
