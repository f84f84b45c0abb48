"""Models and migrations agree."""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from luthier.store.database import Database
from luthier.store.schema import MIGRATIONS
from luthier.store.tables import SCHEMA_VERSION, metadata


def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        for name, table in metadata.tables.items():
            found = inspect(connection).get_foreign_keys(name)
            wanted = {(key.column.table.name, key.ondelete) for key in table.foreign_keys}
            assert {(key["referred_table"], key["options"].get("ondelete")) for key in found} == wanted


def test_the_version_of_the_code_is_the_one_head() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [SCHEMA_VERSION]
    for revision in script.walk_revisions():
        assert Path(revision.path).stem.startswith(f"v{revision.revision}_")
