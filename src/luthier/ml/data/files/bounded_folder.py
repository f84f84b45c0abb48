"""A folder of entries that can be made again, kept below a limit: those that were used longest ago are removed."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

IN_USE_SECONDS: Final = 3600.0
"""What was used within the last hour is not removed: the process that has read its name may open it yet."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A folder in the folder, or a file of a folder whose entries are files.

    Attributes:
        path: where it is.
        num_bytes: of its files.
        used_at: when one of them was used last, in seconds since 1970.
    """

    path: Path
    num_bytes: int
    used_at: float


def mark_used(file: Path) -> None:
    """Note that a file of an entry is used now: its time of change is the time of its last use."""
    with contextlib.suppress(OSError):  # of another user, or removed a moment ago
        os.utime(file)


def entries_of(folder: Path) -> list[Entry]:
    """The entries of a folder, those that were used longest ago first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if statuses := _statuses(path):
            size, used_at = sum(one.st_size for one in statuses), max(one.st_mtime for one in statuses)
            found.append(Entry(path, size, used_at))
    return sorted(found, key=lambda entry: (entry.used_at, entry.path.name))


def _statuses(path: Path) -> list[os.stat_result]:
    """Of the files of an entry that are still there: another process may be removing it."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for file in path.iterdir() if path.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                found.append(file.stat())
    return found


def remove_least_used(
    folder: Path, max_bytes: int, *, newest: Path | None = None, is_held: Callable[[str], bool] = lambda _name: False
) -> list[Entry]:
    """Remove entries until the others take at most `max_bytes`, and return what was removed.

    Args:
        folder: of the entries.
        max_bytes: the limit; entries in use may exceed it.
        newest: an entry that stays, or a file of it.
        is_held: name of an entry -> whether somebody needs it.
    """
    latest = time.time() - IN_USE_SECONDS
    return remove_oldest(entries_of(folder), max_bytes, latest=latest, newest=newest, is_held=is_held)


def remove_oldest(
    entries: Sequence[Entry],
    max_bytes: int,
    *,
    latest: float = math.inf,
    newest: Path | None = None,
    is_held: Callable[[str], bool] = lambda _name: False,
) -> list[Entry]:
    """Remove entries until the others take at most `max_bytes`, and return what was removed.

    Args:
        entries: those that were used longest ago first.
        max_bytes: the limit; entries in use may exceed it.
        latest: entries that were used after this moment stay, in seconds since 1970.
        newest: as of `remove_least_used`.
        is_held: as of `remove_least_used`.

    Raises:
        OSError: an entry that is a file cannot be removed; what is left of a folder is no error.
    """
    over = sum(entry.num_bytes for entry in entries) - max_bytes
    removed = []
    for entry in entries:
        if over <= 0 or entry.used_at > latest:
            break
        if newest is not None and newest.is_relative_to(entry.path):
            continue
        if not is_held(entry.path.name):
            if entry.path.is_dir():
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                entry.path.unlink(missing_ok=True)
            over -= entry.num_bytes
            removed.append(entry)
    return removed
