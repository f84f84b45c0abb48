"""What must have reached the disk itself before it is reported as being there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder, is on the disk.

    Raises:
        OSError: It cannot be opened, or the disk fails.
    """
    # O_RDONLY works for folders as well, which cannot be opened for writing; fsync needs no write access.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(file: IO[bytes] | IO[str]) -> None:
    """Wait until all that was written to an open file is on the disk.

    Raises:
        OSError: The disk is full, or fails.
    """
    # flush moves Python's buffer to the kernel, fsync the kernel's to the disk: without the first the second misses it.
    file.flush()
    os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Wait until a folder and all that is in it are on the disk.

    Raises:
        OSError: One of them cannot be opened, or the disk fails.
    """
    for path in [*folder.rglob("*"), folder]:
        sync(path)
