"""The databases that tests have one after another are as the migrations make them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from tests.fixtures.postgresql_databases import PostgresqlDatabases
from tests.vacuous import nonempty

from luthier.features.runs.store import RunStore
from luthier.platform.db.database import Database
from luthier.testing.records import make_plan, make_record

_SEQUENCES = "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public'"
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"


def content(url: str) -> dict[str, Any]:
    """The rows of each table, and where each sequence is."""
    with Database.open(url) as database, database.read() as connection:
        tables = nonempty([str(name) for (name,) in connection.execute(text(_TABLES))])
        found: dict[str, Any] = {
            name: sorted(map(str, connection.execute(text(f'SELECT * FROM "{name}"')))) for name in tables
        }
        return found | {f"sequence {name}": last for name, last in connection.execute(text(_SEQUENCES))}


def test_a_database_is_given_to_the_next_test_as_it_was_at_first(new_postgresql: PostgresqlDatabases) -> None:
    url = new_postgresql()
    fresh = content(url)
    with Database.open(url) as database:
        RunStore(database).create(make_record(), make_plan())
    assert content(url) != fresh
    new_postgresql.give_back(url)
    assert new_postgresql() == url
    assert content(url) == fresh
    new_postgresql.give_back(url)


def test_one_whose_tables_were_changed_is_given_to_nobody(new_postgresql: PostgresqlDatabases) -> None:
    url = new_postgresql()
    with Database.open(url) as database, database.write() as connection:
        connection.execute(text("ALTER TABLE runs ADD COLUMN more integer"))
    new_postgresql.give_back(url)
    assert new_postgresql() != url
