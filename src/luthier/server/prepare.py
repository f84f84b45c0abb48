"""Use case: make a home ready for server and workers that others start: schema, checks, and the first key."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from luthier.core.errors import WorkError
from luthier.platform.auth.service import first_key
from luthier.platform.db.tables import SCHEMA_VERSION
from luthier.platform.home.context import Context
from luthier.platform.http.health import look

GIVEN_KEY: Final = "LUTHIER_ADMIN_KEY"
"""The variable with the first key; it matters only while there is no key at all."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is ready.

    Attributes:
        database: Its name, without a password.
        schema: The version of its tables.
        artifacts: `in the home`, or `elsewhere`: its address may hold a key.
        key_is: `made` now, `given` by the environment, or `there` before.
        key: The key that was made; it is shown this once.
    """

    database: str
    schema: str
    artifacts: Literal["in the home", "elsewhere"]
    key_is: Literal["made", "given", "there"]
    key: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier server prepare --json`."""
        return asdict(self)


def prepare_home(context: Context, given_key: str | None = None) -> Prepared:
    """Migrate the database, check all that work needs, and make the first key. The same again changes nothing.

    Args:
        context: The home.
        given_key: The first key, from the environment; None makes a random one.

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
    key = first_key(context, given_key)
    key_is: Literal["made", "given", "there"] = "there" if key is None else "made" if given_key is None else "given"
    place: Literal["in the home", "elsewhere"] = "in the home" if context.settings.artifacts is None else "elsewhere"
    return Prepared(name, str(SCHEMA_VERSION), place, key_is, key if key_is == "made" else None)
