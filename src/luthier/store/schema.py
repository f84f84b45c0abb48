"""Bring a database to the schema of this version; a look at one row where there is nothing to do."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from luthier.core.errors import ConflictError, WorkError
from luthier.store.file_lock import file_lock
from luthier.store.tables import SCHEMA_VERSION

MIGRATIONS = Path(__file__).parent / "migrations"
IS_WRITE = "luthier_is_write"  # the execution option that asks for a write transaction
_LOCK_TIMEOUT_SECONDS = 60


def bring_up_to_date(engine: Engine, path: Path) -> None:
    """Make or migrate the SQLite file at `path` where its version is not `SCHEMA_VERSION`.

    One process migrates, the others wait for it. All migrations take effect together, or none does.

    Raises ConflictError (made by a newer Luthier) and WorkError (an SQLite file that is not Luthier's).
    """
    with engine.connect() as connection:
        if _version(connection) == SCHEMA_VERSION:
            return
    lock = path.with_name(f"{path.name}.lock")
    with file_lock(lock, what=f"the database {path}", timeout_seconds=_LOCK_TIMEOUT_SECONDS):
        # Stays in the file; set here alone, since two processes that set it at once may collide.
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            driver.execute("PRAGMA journal_mode = WAL").close()
        with engine.connect().execution_options(**{IS_WRITE: True}) as connection, connection.begin():
            version = _version(connection)
            if version != SCHEMA_VERSION:
                _check_origin(connection, path, version)
                _migrate(connection)


def _version(connection: Connection) -> str | None:
    """The migration that the database stands at, or None where it has none yet."""
    try:
        version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except OperationalError as error:
        if "no such table" not in str(error.orig):
            raise
        return None
    return None if version is None else str(version)


def _check_origin(connection: Connection, path: Path, version: str | None) -> None:
    if version is None:
        from sqlalchemy import inspect

        if names := inspect(connection).get_table_names():
            raise WorkError(
                f"the file {path} holds tables of something else: {', '.join(names[:5])}",
                expected="a database that Luthier made, or none",
                do="move the file away, or choose another home",
            )
        return
    known = {file.stem.partition("_")[0].removeprefix("v") for file in (MIGRATIONS / "versions").glob("v*.py")}
    if version not in known:
        raise ConflictError(
            f"the database {path} has schema {version}, made by a newer Luthier",
            expected=f"schema {SCHEMA_VERSION} or older",
            do="update Luthier, or choose another home",
        )


def _migrate(connection: Connection) -> None:
    # Costs a quarter of a second, and is needed once a version.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")
