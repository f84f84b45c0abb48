"""Use case: make a home ready for server and workers that others start: schema, checks, and the first key."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from luthier.core.errors import WorkError
from luthier.platform.auth.first_key import FirstKey, make_first_key
from luthier.platform.auth.service import first_key
from luthier.platform.db.server_version import record_server_version
from luthier.platform.db.tables import SCHEMA_VERSION
from luthier.platform.home.context import Context
from luthier.platform.http.health import look


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is ready.

    Attributes:
        database: Its name, without a password.
        schema: The version of its tables.
        artifacts: `in the home`, or `elsewhere`: its address may hold a key.
        key_is: `made` now, `given` by the environment, or `there` before.
        key: The key that was made, where it is to be shown; it is shown this once.
        key_file: The file with the key that was made, where it is not to be shown.
    """

    database: str
    schema: str
    artifacts: Literal["in the home", "elsewhere"]
    key_is: Literal["made", "given", "there"]
    key: str | None = None
    key_file: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier server prepare --json`."""
        return asdict(self)


def prepare_home(context: Context, given_key: str | None = None, *, is_shown: bool = True) -> Prepared:
    """Migrate the database, check all that work needs, and make the first key. The same again changes nothing.

    Args:
        context: The home.
        given_key: The first key, from the environment; None makes a random one.
        is_shown: Whether the caller shows a key that was made; else it goes into a file.

    Raises:
        WorkError: Database, artifacts or disk cannot be used.
        RequestError: The given key cannot be one.
    """
    name = context.database.name  # opened, and so migrated, first
    if problems := [f"{check.name}: {check.problem}" for check in look(context) if check.problem]:
        raise WorkError(
            "; ".join(problems),
            expected="a database that takes writes, artifacts that can be listed, and room on the disk",
            do="correct LUTHIER_DATABASE, LUTHIER_ARTIFACTS or the volume of LUTHIER_HOME, and run it again",
        )
    # Workers of an older version that still run take no more jobs.
    record_server_version(context.watches)
    made: FirstKey | None = None
    key_is: Literal["made", "given", "there"]
    if given_key is None:
        made = make_first_key(context, is_shown=is_shown)
        key_is = "there" if made is None else "made"
    else:
        key_is = "there" if first_key(context, given_key) is None else "given"
    made = made or FirstKey()
    place: Literal["in the home", "elsewhere"] = "in the home" if context.settings.artifacts is None else "elsewhere"
    key_file = None if made.file is None else str(made.file)
    return Prepared(name, str(SCHEMA_VERSION), place, key_is, made.key, key_file)
