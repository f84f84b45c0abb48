"""The audit log on both databases: it only grows, and shows what was done to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from sqlalchemy import delete, insert, text, update
from sqlalchemy.exc import DBAPIError

from luthier.platform.audit_log.service import GENESIS_HASH, AuditEvent, AuditLogStore, append_audit_event
from luthier.platform.db.database import Database
from luthier.platform.db.tables import audit_log


@pytest.fixture
def log(database: Database) -> AuditLogStore:
    return AuditLogStore(database)


def an_audit_event(number: int = 0, project_id: str | None = None) -> AuditEvent:
    return AuditEvent(
        actor="örk ☃", action="file.deleted", subject=f"file-{number}", project_id=project_id, document="{}"
    )


def test_each_entry_follows_on_the_one_before(log: AuditLogStore) -> None:
    made = [log.append(an_audit_event(number)) for number in range(3)]
    assert [entry.number for entry in made] == [1, 2, 3]
    assert made[0].previous_hash == GENESIS_HASH
    assert made[1].previous_hash == made[0].hash
    found = log.after(0, limit=10)
    assert found == made, "the database gives back what was hashed, to the last digit"
    assert all(entry.hash == entry.hash_of_it() for entry in found)
    assert len({entry.hash for entry in found}) == 3
    assert log.after(1, limit=1) == [made[1]]
    assert log.newest(limit=2) == [made[2], made[1]]


def test_one_project_sees_its_own(log: AuditLogStore) -> None:
    log.append(an_audit_event(1, "a"))
    log.append(an_audit_event(2, "b"))
    assert [entry.subject for entry in log.newest(limit=5, project_id="a")] == ["file-1"]


def test_many_at_once_make_one_chain(log: AuditLogStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: log.append(an_audit_event(number)), range(24)))
    found = log.after(0, limit=100)
    assert [entry.number for entry in found] == list(range(1, 25))
    assert all(entry.previous_hash == before.hash for before, entry in pairwise(found))


def test_the_database_itself_refuses_changes(database: Database, log: AuditLogStore) -> None:
    before = [log.append(an_audit_event(number)) for number in range(2)]
    for change in (update(audit_log).values(subject="x"), delete(audit_log).where(audit_log.c.number == 1)):
        with pytest.raises(DBAPIError, match="append-only"), database.write() as connection:
            connection.execute(change)
    if database.name.startswith("postgresql"):
        with pytest.raises(DBAPIError, match="append-only"), database.write() as connection:
            connection.execute(text("TRUNCATE audit_log"))
    assert log.after(0, limit=5) == before


def test_what_fails_is_not_logged_either(database: Database, log: AuditLogStore) -> None:
    def write_and_fail() -> None:
        with database.write() as connection:
            append_audit_event(connection, database.now, an_audit_event())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert log.after(0, limit=5) == []
    assert log.append(an_audit_event()).number == 1


def test_a_number_is_given_once(database: Database, log: AuditLogStore) -> None:
    entry = log.append(an_audit_event())
    with pytest.raises(DBAPIError), database.write() as connection:
        connection.execute(insert(audit_log).values(**entry.model_dump()))


def test_entries_are_found_by_actor_action_and_number(database: Database) -> None:
    store = AuditLogStore(database)
    for number in range(1, 7):
        action = "row.decided" if number % 2 else "row.undone"
        store.append(AuditEvent(actor=f"key-1 Ada_{number}", action=action, subject="s", project_id="default"))
    store.append(AuditEvent(actor="local", action="other.audit_event", subject="s", project_id="proj-2"))

    def found(**asked: object) -> list[int]:
        return [entry.number for entry in store.newest(limit=9, **asked)]  # type: ignore[arg-type]

    assert found(project_id="default") == [6, 5, 4, 3, 2, 1]
    assert found(project_id="default", before=4) == [3, 2, 1]
    assert found(actor="ADA_3") == [3]
    assert found(actor="a%") == [], "signs of patterns mean themselves"
    assert found(action="row.decided", before=5) == [3, 1]
    assert found(action="row") == []
    assert store.actions("default") == ["row.decided", "row.undone"]
