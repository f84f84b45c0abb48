"""Folders in the making, which nobody misses when the process that makes them is killed.

`kill -9` runs no clean-up, so a folder that is only removed at the end of a block stays for good. Here each one is held
by a lock of the kernel, which ends with its process, however that ends: a folder of ours without a holder is abandoned,
and whoever makes the next one beside it, or looks through a register, removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_TOKEN_BYTES: Final = 8
_UNNAMED: Final = ".unnamed-"


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder of this user alone, gone when the block ends; what killed processes left beside it goes first.

    Args:
        parent: An existing folder.
        prefix: The beginning of its name, before 16 hexadecimal digits. Nothing else in `parent` has such a name.

    Raises:
        OSError: the folder cannot be made.
    """
    # Here, since nobody else would come by: no job sweeps these places.
    remove_abandoned(parent, prefix)
    # Under its name a folder is held from the first moment: nobody can take it for an abandoned one.
    folder = Path(tempfile.mkdtemp(prefix=_UNNAMED, dir=parent))
    try:
        with holding(folder, must=False):
            # The lock is on the open folder, not on its name, so renaming keeps it.
            folder = folder.rename(parent / f"{prefix}{secrets.token_hex(_TOKEN_BYTES)}")
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path, prefix: str) -> list[Path]:
    """Remove the folders of `scratch_folder` with this prefix that no process holds; returns them."""
    name = re.compile(re.escape(prefix) + f"[0-9a-f]{{{2 * _TOKEN_BYTES}}}")
    return [folder for folder in parent.iterdir() if name.fullmatch(folder.name) and remove_if_abandoned(folder)]


def remove_if_abandoned(folder: Path) -> bool:
    """Remove a folder that no process holds. False where one does, or it is none, or cannot be removed."""
    # A link that somebody put there must not lead the removal elsewhere.
    if folder.is_symlink() or not folder.is_dir():
        return False
    with contextlib.suppress(OSError), holding(folder):
        shutil.rmtree(folder)
        return True
    return False


@contextmanager
def holding(path: Path, *, must: bool = True) -> Iterator[None]:
    """Hold a file or folder, which the kernel lets go when this process ends.

    Args:
        path: The file or folder.
        must: Whether the lock is required. False goes on without it, as on some network disks; there nothing is ever
            taken for abandoned.

    Raises:
        OSError: another process holds it.
    """
    # CLOEXEC: a child process would otherwise keep the lock after this process has died.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if must:
                raise
        yield
    finally:
        os.close(descriptor)


class FolderRegister:
    """Folders in the making anywhere on this machine, each with a file in `place` that its process holds."""

    def __init__(self, place: Path) -> None:
        self._place = place

    @contextmanager
    def entered(self, folder: Path) -> Iterator[None]:
        """Enter a folder while the block runs; it need not be there yet.

        Raises:
            OSError: `place` is not to be.
        """
        self._place.mkdir(parents=True, exist_ok=True)
        entry = self._place / f".{secrets.token_hex(_TOKEN_BYTES)}"
        # Hidden while it is written: `remove_abandoned` passes names with a dot over, so it never reads half a path.
        entry.write_text(str(folder), encoding="utf-8")
        try:
            with holding(entry, must=False):
                entry = entry.rename(self._place / entry.name.removeprefix("."))
                yield
        finally:
            entry.unlink(missing_ok=True)

    def remove_abandoned(self) -> list[Path]:
        """Remove every folder whose process has died without leaving it; returns them."""
        removed = []
        for entry in sorted(self._place.iterdir()) if self._place.is_dir() else ():
            if entry.name.startswith("."):
                continue
            with contextlib.suppress(OSError), holding(entry):
                folder = Path(entry.read_text(encoding="utf-8"))
                if remove_if_abandoned(folder):
                    removed.append(folder)
                # An entry stays as long as its folder could not be removed, so that the next look tries again.
                if not folder.exists():
                    entry.unlink(missing_ok=True)
        return removed
