"""Models and migrations agree."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from tests.vacuous import nonempty

from luthier.platform.db import database as schema
from luthier.platform.db.database import MIGRATIONS, Database
from luthier.platform.db.tables import SCHEMA_VERSION, metadata

pytestmark = pytest.mark.usefixtures("real_migration")


def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        for name, table in nonempty(metadata.tables.items()):
            found = inspect(connection).get_foreign_keys(name)
            wanted = {(key.column.table.name, key.ondelete) for key in table.foreign_keys}
            assert {(key["referred_table"], key["options"].get("ondelete")) for key in found} == wanted


def test_the_version_of_the_code_is_the_one_head() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [SCHEMA_VERSION]
    for revision in nonempty(script.walk_revisions()):
        assert Path(revision.path).stem.startswith(f"v{revision.revision}_")


def test_a_migration_that_breaks_off_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = schema._migrate

    def break_off(connection: Connection) -> None:
        whole(connection)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(schema, "_migrate", break_off)
        with pytest.raises(KeyboardInterrupt):
            Database.open(tmp_path / "luthier.db")
    with closing(sqlite3.connect(tmp_path / "luthier.db")) as plain:
        assert plain.execute("SELECT name FROM sqlite_master").fetchall() == []
    with Database.open(tmp_path / "luthier.db") as database, database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM runs")).scalar() == 0
