"""Bring a database to the schema of this version; a look at one row where there is nothing to do."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from luthier.core.errors import ConflictError, WorkError
from luthier.platform.db.backend import Backend
from luthier.platform.db.tables import SCHEMA_VERSION

MIGRATIONS = Path(__file__).parent / "migrations"


def bring_up_to_date(backend: Backend) -> None:
    """Make or migrate a database where its version is not `SCHEMA_VERSION`.

    One process migrates, the others wait for it. All migrations take effect together, or none does.

    Raises ConflictError (made by a newer Luthier) and WorkError (a database that is not Luthier's).
    """
    with backend.engine.connect() as connection:
        if version_of(connection) == SCHEMA_VERSION:
            return
    with backend.migrating() as connection:
        version = version_of(connection)
        if version != SCHEMA_VERSION:
            _check_origin(connection, backend.name, version)
            _migrate(connection)


def version_of(connection: Connection) -> str | None:
    """The migration that the database stands at, or None where it has none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if version is None else str(version)


def _check_origin(connection: Connection, place: str, version: str | None) -> None:
    if version is None:
        if names := inspect(connection).get_table_names():
            raise WorkError(
                f"{place} holds tables of something else: {', '.join(names[:5])}",
                expected="a database that Luthier made, or an empty one",
                do="move it away, or choose another home or database",
            )
        return
    known = {file.stem.partition("_")[0].removeprefix("v") for file in (MIGRATIONS / "versions").glob("v*.py")}
    if version not in known:
        raise ConflictError(
            f"the database {place} has schema {version}, made by a newer Luthier",
            expected=f"schema {SCHEMA_VERSION} or older",
            do="update Luthier, or choose another home or database",
        )


def _migrate(connection: Connection) -> None:
    # Costs a quarter of a second, and is needed once a version.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")
