"""Bring a database to the schema of this version; a look at one row where there is nothing to do.

no tables      all tables of the code are made at once
0001 to 0009   from before 0.1.0: what is missing is added, and nothing else had changed
0010 and on    the migrations since the baseline of 0.1.0
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import BigInteger, Connection, inspect, text

from luthier.core.errors import ConflictError, WorkError
from luthier.platform.db.backend import Backend
from luthier.platform.db.tables import SCHEMA_VERSION, metadata

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
_UNRELEASED: Final = frozenset(f"{number:04}" for number in range(1, 10))


def bring_up_to_date(backend: Backend) -> None:
    """Make or migrate a database where its version is not `SCHEMA_VERSION`.

    One process migrates, the others wait for it. All changes take effect together, or none does.

    Raises:
        ConflictError: The database was made by a newer Luthier.
        WorkError: The database holds tables of something else.
    """
    with backend.engine.connect() as connection:
        # The common case takes no lock, so that many processes open a current database at once.
        if version_of(connection) == SCHEMA_VERSION:
            return
    with backend.migrating() as connection:
        # Again, now under the lock: another process may have migrated while this one waited.
        version = version_of(connection)
        if version != SCHEMA_VERSION:
            _check_origin(connection, backend.name, version)
            _migrate(connection)


def version_of(connection: Connection) -> str | None:
    """The revision of the database, or None where it has none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if version is None else str(version)


def _check_origin(connection: Connection, place: str, version: str | None) -> None:
    # No revision and no table is a new database. Tables without one belong to another program.
    if version is None:
        if names := inspect(connection).get_table_names():
            raise WorkError(
                f"{place} holds tables of something else: {', '.join(names[:5])}",
                expected="a database that Luthier made, or an empty one",
                do="move it away, or choose another home or database",
            )
        return
    known = {file.stem.partition("_")[0].removeprefix("v") for file in (MIGRATIONS / "versions").glob("v*.py")}
    if version not in known | _UNRELEASED:
        raise ConflictError(
            f"the database {place} has schema {version}, made by a newer Luthier",
            expected=f"schema {SCHEMA_VERSION} or older",
            do="update Luthier, or choose another home or database",
        )


def _migrate(connection: Connection) -> None:
    # Alembic costs a quarter of a second to load, and is needed once a version.
    from alembic import command

    config, version = _config(connection), version_of(connection)
    if version is None:
        metadata.create_all(connection)
    elif version in _UNRELEASED:
        _add_what_is_missing(connection, version)
    else:
        command.upgrade(config, "head")
        return
    # purge: the revision of a database from before 0.1.0 names a migration that no longer exists.
    command.stamp(config, "head", purge=True)


def _add_what_is_missing(connection: Connection, version: str) -> None:
    """Add the tables, columns and indexes that a database from before 0.1.0 lacks."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    operations, found = Operations(MigrationContext.configure(connection)), inspect(connection)
    if version < "0004" and connection.dialect.name == "postgresql":  # SQLite's integers have 64 bits already
        operations.alter_column("artifacts", "num_bytes", type_=BigInteger())
    for table in metadata.sorted_tables:
        if not found.has_table(table.name):
            table.create(connection)
            continue
        columns = {column["name"] for column in found.get_columns(table.name)}
        for column in table.columns:
            if column.name not in columns:
                # A copy, since a column object belongs to one table. New columns allow NULL or have a server default.
                operations.add_column(table.name, column._copy())
        indexes = {index["name"] for index in found.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in indexes:
                index.create(connection)


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    # Alembic reads its configuration by ConfigParser, to which `%` is the start of an interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
