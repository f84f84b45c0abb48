"""Databases of older versions come to the tables of this one, with all their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError
from tests.fixtures.homes.restore import UNRELEASED, copy_to_postgresql, migrate_as_before, rows_of, unpack
from tests.vacuous import nonempty

from luthier.platform.db.database import Database
from luthier.platform.db.tables import SCHEMA_VERSION, metadata

pytestmark = pytest.mark.usefixtures("real_migration")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'luthier.db'}"
    url: str = request.getfixturevalue("postgresql").new_database()
    return url


@pytest.fixture
def of_0_1(empty: str, tmp_path: Path) -> tuple[str, dict[str, list[dict[str, object]]]]:
    """The URL of a database that 0.1.0 made, and all its rows."""
    home = unpack(tmp_path / "root")
    if empty.startswith("postgresql"):
        copy_to_postgresql(home / "luthier.db", empty)
        url = empty
    else:
        url = f"sqlite:///{home / 'luthier.db'}"
    engine = _engine(url)
    with engine.connect() as connection:
        rows = rows_of(connection)
    engine.dispose()
    return url, rows


def _engine(url: str) -> Any:
    return create_engine(url.replace("postgresql://", "postgresql+pg8000://"))


def reflected(connection: Connection) -> dict[str, dict[str, Any]]:
    """All that the database says of its tables: columns, keys, constraints, indexes, triggers."""
    seen = inspect(connection)
    found = {}
    for name in seen.get_table_names():
        columns = {
            one["name"]: (str(one["type"]), one["nullable"], one["default"], one.get("autoincrement"))
            for one in seen.get_columns(name)
        }
        foreign = sorted(
            (one["name"], one["constrained_columns"], one["referred_table"], one["referred_columns"], one["options"])
            for one in seen.get_foreign_keys(name)
        )
        found[name] = {
            "columns": columns,
            "key": seen.get_pk_constraint(name),
            "foreign": foreign,
            "unique": sorted((one["name"], one["column_names"]) for one in seen.get_unique_constraints(name)),
            "indexes": sorted((one["name"], one["column_names"], one["unique"]) for one in seen.get_indexes(name)),
        }
    if connection.dialect.name == "sqlite":
        triggers = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
        numbered = "SELECT name, 'number' FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%' ORDER BY name"
        found["numbered"] = {row[0]: row[1] for row in connection.execute(text(numbered))}
    else:
        triggers = "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgname"
    found["triggers"] = {row[0]: row[1] for row in connection.execute(text(triggers))}
    return found


def schema_of(url: str) -> dict[str, dict[str, Any]]:
    engine = _engine(url)
    with engine.connect() as connection:
        found = reflected(connection)
    engine.dispose()
    return found


@pytest.fixture(scope="module")
def new_schemas() -> dict[str, dict[str, dict[str, Any]]]:
    """By kind: what `fresh` has found, once a file."""
    return {}


@pytest.fixture
def fresh(
    empty: str, request: pytest.FixtureRequest, tmp_path: Path, new_schemas: dict[str, dict[str, dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """What a new database of this version looks like."""
    kind, url = empty.partition(":")[0], f"sqlite:///{tmp_path / 'fresh.db'}"
    if kind in new_schemas:
        return new_schemas[kind]
    if kind == "postgresql":
        url = request.getfixturevalue("postgresql").new_database()
    Database.open(url).close()
    found = new_schemas[kind] = schema_of(url)
    assert set(found) == {*metadata.tables, "alembic_version", "triggers"} | ({"numbered"} & set(found))
    assert found["triggers"]
    return found


def test_a_database_of_0_1_keeps_every_row_and_has_the_tables_of_a_new_one(
    of_0_1: tuple[str, dict[str, list[dict[str, object]]]], fresh: dict[str, dict[str, Any]]
) -> None:
    url, rows = of_0_1
    assert [name for name, found in nonempty(rows.items()) if not found] == []
    with Database.open(url) as database:
        assert database.schema_version() == SCHEMA_VERSION
        with database.read() as connection:
            after = rows_of(connection)
            for name, old in nonempty(rows.items()):
                # New columns may have come since.
                same = [{key: row[key] for key in before} for before, row in zip(old, after[name], strict=True)]
                assert same == old, name
            filled = {name for name in after if name not in rows and after[name]}
            assert filled <= {"run_values"}, "other new tables begin empty"
            assert reflected(connection) == fresh
            # The runs of before can be searched and have names.
            kept = {(row["run_id"], row["key"]) for row in after["run_values"]}
            for run in nonempty(rows["runs"]):
                assert {(run["run_id"], "name"), (run["run_id"], "training.learning_rate")} <= kept


@pytest.mark.parametrize(
    ("revision", "empty"),
    [*((one, "sqlite") for one in UNRELEASED), ("0001", "postgresql"), ("0007", "postgresql")],
    indirect=["empty"],
)
def test_a_database_from_before_0_1_comes_to_the_same_tables(
    revision: str, empty: str, fresh: dict[str, dict[str, Any]]
) -> None:
    engine = _engine(empty)
    with engine.begin() as connection:
        migrate_as_before(connection, revision)
        connection.execute(
            text("INSERT INTO artifacts (sha256, kind, num_bytes, created_at) VALUES ('a', 'b', 1, 'c')")
        )
        before = rows_of(connection)
    engine.dispose()
    with Database.open(empty) as database:
        assert database.schema_version() == SCHEMA_VERSION
        with database.read() as connection:
            assert reflected(connection) == fresh
            after = rows_of(connection)
            assert [row["name"] for row in after["projects"]] == ["default"]
            for name, rows in nonempty(before.items()):
                assert [{key: row[key] for key in old} for old, row in zip(rows, after[name], strict=True)] == rows
        with database.write() as connection:
            connection.execute(text("INSERT INTO audit_log VALUES (1, 0.0, 'a', 'b', 'c', NULL, '{}', 'd', 'e')"))
        with pytest.raises(DBAPIError, match="append-only"), database.write() as connection:
            connection.execute(text("DELETE FROM audit_log"))
    with Database.open(empty) as database:  # and once more: nothing is left to do
        assert database.schema_version() == SCHEMA_VERSION
