"""A disk that runs full, reported as StorageFullError wherever something is written.

A command writes into a temporary file or folder beside its output and renames it (`data.outputs`, `replace_text`,
`write_rows`); with `disk_full_explained` around that, no part of the output stays and the error names the place.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from luthier.core.errors import LuthierError, StorageFullError

_ERRNOS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# Libraries that write by themselves (safetensors, polars, SQLite) raise errors of their own.
_WORDS: Final = ("No space left on device", "Disk quota exceeded", "StorageFull", "database or disk is full")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that there is no room: disk, quota, or largest size of a file."""
    cause: BaseException | None = error
    while cause is not None:
        # One of ours was classified where it was raised: what caused it is not looked at again.
        if isinstance(cause, LuthierError):
            return isinstance(cause, StorageFullError)
        if isinstance(cause, OSError) and cause.errno in _ERRNOS:
            return True
        if says_disk_full(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def says_disk_full(text: str) -> bool:
    """Whether a message of a library, or the log of a process that died, says that there is no room."""
    return any(word in text for word in _WORDS)


def disk_full_reason(error: BaseException) -> str:
    """Why there is no room, in one line: of the error, or of what caused it where it has no words of its own."""
    cause: BaseException | None = error
    while cause is not None:
        # The last line: libraries put the cause of the system behind their own words.
        lines = (getattr(cause, "strerror", None) or str(cause)).strip().splitlines()
        if lines:
            return str(lines[-1])
        cause = cause.__cause__ or cause.__context__
    return os.strerror(errno.ENOSPC)


def storage_full(
    error: BaseException, place: Path | None = None, *, expected: str = "", do: str = ""
) -> StorageFullError:
    """The error for a person.

    Args:
        place: what was being written, or the folder of it.
    """
    filename = getattr(error, "filename", None)
    where = f" while writing {place or filename}" if place or filename else ""
    return StorageFullError(
        f"no room left{where} ({disk_full_reason(error)})",
        expected=expected or "room for what is written",
        do=do or "free some disk space, or write to another disk, then run it again",
    )


@contextmanager
def disk_full_explained(place: Path, *, expected: str = "", do: str = "") -> Iterator[None]:
    """Raise StorageFullError where the disk runs full in the block; other errors pass.

    Args:
        place: what is written.
        expected: how much room it takes.
        do: what helps, where that is more than to free some.
    """
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise storage_full(error, place, expected=expected, do=do) from error
