"""Who of a machine's users can reach a home: it holds rows, traffic, digests of keys and hashes of passwords.

A home is made 0700 and its database 0600. One that was made otherwise is not changed, since that may be intended;
it is reported, with the command that closes it.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from luthier.platform.home.settings import Settings

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_PRIVATE_UMASK: Final = 0o077
_MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class ExposedPath:
    """Something that other users of the machine can reach.

    Attributes:
        message: What it is, and its mode.
        do: The command that closes it.
    """

    message: str
    do: str


@contextmanager
def private_files() -> Iterator[None]:
    """What this process and its children make while the block runs is for this user alone.

    For whole processes: it holds for all threads.
    """
    before = os.umask(_PRIVATE_UMASK)
    try:
        yield
    finally:
        os.umask(before)


def exposed_paths(settings: Settings) -> tuple[ExposedPath, ...]:
    """What other users of the machine can reach of a home and of its SQLite database; empty if nothing.

    Not checked on Windows, whose modes say nothing about other users.
    """
    if os.name == "nt":
        return ()
    found, home = [], settings.home
    if _is_open(home):
        inside = sorted(path.name for path in _inside(home) if _is_open(path))
        named = ", ".join(inside[:_MOST_NAMED]) + (
            f" and {len(inside) - _MOST_NAMED} more" * (len(inside) > _MOST_NAMED)
        )
        found.append(
            ExposedPath(
                f"the home {home} is open to other users of this machine ({_mode(home)})"
                + (f", and with it {named}" if inside else ""),
                f"close it: chmod -R go-rwx {shlex.quote(str(home))}",
            )
        )
    # A closed home closes all that is in it; only a database elsewhere needs a separate check.
    files = [path for path in database_files(settings) if not path.is_relative_to(home) and _is_open(path)]
    if files:
        names = shlex.join(map(str, files))
        found.append(
            ExposedPath(
                f"the database {files[0]} is open to other users of this machine ({_mode(files[0])})",
                f"close it: chmod go-rwx {names}",
            )
        )
    return tuple(found)


def database_files(settings: Settings) -> list[Path]:
    """The files of a database that SQLite keeps."""
    main = settings.database_path
    if settings.database is not None:
        given = settings.database.get_secret_value()
        try:
            url = make_url(given) if "://" in given else None
        except ArgumentError:
            return []
        if url is not None and (url.get_backend_name() != "sqlite" or not url.database):
            return []
        main = Path(given if url is None else str(url.database)).absolute()
    return [main, *(main.with_name(f"{main.name}-{end}") for end in ("wal", "shm"))]


def _inside(home: Path) -> list[Path]:
    try:
        return list(home.iterdir())
    except OSError:
        return []


def _is_open(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    # Links are 0777 on Linux, which means nothing.
    return not stat.S_ISLNK(status.st_mode) and bool(status.st_mode & _OTHERS)


def _mode(path: Path) -> str:
    return f"mode {stat.S_IMODE(path.lstat().st_mode):04o}"
