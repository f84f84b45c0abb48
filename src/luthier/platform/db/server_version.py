"""The version of Luthier whose server was started last on a database: workers of an older one take no jobs of it.

The schema alone does not show it, since not every version changes it.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, select

from luthier.core.access import DEFAULT_PROJECT
from luthier.platform.db.tables import watches

if TYPE_CHECKING:
    from luthier.platform.db.monitor_state import WatchStore

_KIND: Final = "server_version"
_RELEASE: Final = re.compile(r"\d+(?:\.\d+)*")


def record_server_version(documents: WatchStore) -> None:
    """Store that a server of this version begins. One of an older version may follow it, if its schema is the same."""
    documents.put(DEFAULT_PROJECT, _KIND, "", own_version())


def newer_server(connection: Connection) -> str | None:
    """The version of the server, where it is newer than this process; None where it is not, or no server was started.

    Args:
        connection: An open transaction.
    """
    is_it = (watches.c.project_id == DEFAULT_PROJECT) & (watches.c.kind == _KIND) & (watches.c.name == "")
    found: str | None = connection.execute(select(watches.c.document).where(is_it)).scalar()
    return found if found is not None and is_older(own_version(), found) else None


def is_older(one: str, other: str) -> bool:
    """Whether a version comes before another one; a preview comes before its release, and previews count as equal.

    Args:
        one: Such as `0.2.0` or `0.2.0rc1`.
        other: Another one.
    """
    return _order(one) < _order(other)


@cache
def own_version() -> str:
    """The version of this process: the files of the package may be replaced while it runs."""
    return version("luthier")


def _order(text: str) -> tuple[tuple[int, ...], bool]:
    found = _RELEASE.match(text)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    # 0.2 and 0.2.0 are the same.
    while numbers and numbers[-1] == 0:
        numbers.pop()
    is_release = re.search(r"(a|b|rc|dev)\d*", text.partition("+")[0]) is None
    return tuple(numbers), is_release
