"""A database in a temporary folder, and runs to put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Double, literal_column

from luthier.core.plan import Plan
from luthier.core.run import RunRecord, TrainResult
from luthier.store.database import Database
from luthier.store.runs import RunStore
from luthier.testing.postgresql_server import PostgresqlServer
from luthier.testing.records import make_plan, make_record, make_result


@pytest.fixture(scope="session")
def new_postgresql(postgresql: PostgresqlServer) -> Callable[[], str]:
    """Makes databases with empty tables, copies of one that the migrations made, and returns their URLs."""
    migrated = postgresql.new_database()
    Database.open(migrated).close()
    return lambda: postgresql.new_database(copy_of=migrated)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of either kind: what the stores promise, they promise on both."""
    if request.param == "sqlite":
        place: str | Path = tmp_path / "luthier.db"
    else:
        place = request.getfixturevalue("new_postgresql")()
    with Database.open(place) as database:
        yield database


@pytest.fixture
def runs(database: Database) -> RunStore:
    return RunStore(database)


@pytest.fixture
def record() -> Callable[..., RunRecord]:
    return make_record


@pytest.fixture
def result() -> TrainResult:
    return make_result()


@pytest.fixture
def plan() -> Plan:
    return make_plan()


@pytest.fixture
def set_clock(database: Database) -> Callable[[float], None]:
    """Set the database's clock forward, or back, by so many seconds."""

    def set_by(seconds: float) -> None:
        database.now = database.now + literal_column(str(float(seconds)), Double)

    return set_by
