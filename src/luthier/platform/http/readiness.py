"""Use case: can this server do its work right now? What a load balancer asks again and again, so it is remembered."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from typing import Final

from luthier.core.errors import LuthierError, UnreachableError, WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.platform.home.context import Context

LEAST_FREE_BYTES: Final = 256 * 1024**2
WRITE_SECONDS: Final = 2.0
"""How long a transaction that writes may have to wait in a database that is ready."""
_REMEMBERED_SECONDS: Final = 3.0


class Check(FrozenModel):
    """One thing that work needs.

    Attributes:
        name: What it is.
        problem: What is wrong with it; None if nothing is.
    """

    name: str
    problem: str | None = None


class Readiness:
    """Looks whether a home can be worked in, at most every few seconds, however often it is called."""

    def __init__(self, context: Context) -> None:
        self._context, self._lock = context, threading.Lock()
        self._checks: tuple[Check, ...] = ()
        self._looked = -_REMEMBERED_SECONDS
        self.is_stopping = False
        """Set once the server is about to end: from then on it is not ready, and asks nobody."""

    def checks(self) -> tuple[Check, ...]:
        """All checks, each with what is wrong."""
        if self.is_stopping:
            return (Check(name="server", problem="it is shutting down"),)
        # Held during the look: all who ask meanwhile share its result instead of looking as well.
        with self._lock:
            if time.monotonic() - self._looked >= _REMEMBERED_SECONDS:
                self._checks, self._looked = look(self._context), time.monotonic()
            return self._checks


def look(context: Context) -> tuple[Check, ...]:
    """Whether the database answers with this version's tables, files can be written, and there is room for them."""
    checks: tuple[tuple[str, Callable[[Context], None]], ...] = (
        ("database", _database), ("artifacts", _artifacts), ("disk", _disk),
    )  # fmt: skip
    return tuple(Check(name=name, problem=_problem(check, context)) for name, check in checks)


def free_bytes(context: Context) -> int:
    """What is free on the disk that holds the home."""
    return shutil.disk_usage(context.home).free


def _problem(check: Callable[[Context], None], context: Context) -> str | None:
    try:
        check(context)
    except LuthierError as error:
        return error.came
    except OSError as error:
        return error.strerror or str(error)
    return None


def _database(context: Context) -> None:
    from luthier.platform.db.tables import SCHEMA_VERSION

    found = context.database.schema_version()
    if found != SCHEMA_VERSION:
        raise WorkError(f"its tables are of version {found}", expected=SCHEMA_VERSION, do="update Luthier")
    try:
        context.database.check_write(WRITE_SECONDS)
    except UnreachableError as error:  # without its name: whoever asks has shown no key
        raise WorkError(
            f"no transaction that writes gets a turn within {WRITE_SECONDS:g} s", expected=error.expected, do=error.do
        ) from error


def _artifacts(context: Context) -> None:
    """Every file comes in by way of this machine's disk, wherever it is kept."""
    from luthier.platform.files.incoming import IncomingFile

    with IncomingFile(context.artifacts.incoming) as probe:
        probe.write(b"probe")
    context.artifacts.look()


def _disk(context: Context) -> None:
    free = free_bytes(context)
    if free < LEAST_FREE_BYTES:
        raise WorkError(
            f"{free / 1024**2:.0f} MiB are free", expected=f"{LEAST_FREE_BYTES >> 20} MiB", do="free some disk space"
        )
