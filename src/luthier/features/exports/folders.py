"""A folder that is written whole or not at all: next to its place, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.core.errors import ConflictError, LuthierError, RequestError, StorageFullError
from luthier.core.system import facilities
from luthier.core.system.files import FolderRegister, holding, is_disk_full, remove_if_abandoned, sync, sync_tree
from luthier.platform.home.context import Context

_FILE_MODE, _FOLDER_MODE = 0o666, 0o777


@contextmanager
def staged_folder(
    final: Path, *, needed_bytes: int, what: str, register: FolderRegister | None = None
) -> Iterator[Path]:
    """An empty folder to write in. It becomes `final` when the block ends well, and is removed when it does not.

    Next to it, in the same parent, there is room for temporary files, which are removed in any case. What a killed
    process left next to `final`, or in a place that `register` lists, is removed first.

    Args:
        final: The folder that is to exist in the end.
        needed_bytes: About how much disk space the writing takes.
        what: What is written, for the error about a full disk.
        register: Where the folder is entered while it is written, so that a later process finds what a killed one left.

    Raises:
        ConflictError: `final` exists and is not an empty folder.
        RequestError: The parent cannot be written.
        StorageFullError: The disk lacks the space, or runs full inside the block.
    """
    # Checked again by the rename below; this early check spares the caller hours of converting for nothing.
    refuse_taken(final)
    made = _make_parents(final)
    try:
        # Leftovers go before free space is measured: they may be what fills the disk.
        _clear_leftovers(final)
        _check_room(final.parent, needed_bytes, what)
        # Same parent, so the same file system: rename(2) is atomic only there, and raises EXDEV across two of them.
        staging = final.parent / f"{_prefix(final)}{secrets.token_hex(4)}"
        with contextlib.ExitStack() as held:
            if register is not None:
                # Entered before the folder exists: a kill at any later moment leaves an entry that leads to it.
                register.remove_abandoned()
                held.enter_context(register.entered(staging))
            held.callback(shutil.rmtree, staging, ignore_errors=True)  # before it leaves the register
            staging.mkdir()
            with holding(staging, must=False):
                folder = staging / "export"
                folder.mkdir()
                yield folder
                # Contents reach the disk before the name does: after a power loss `final` is either absent or complete.
                sync_tree(folder)
                _publish(folder, final)
    except BaseException as error:
        is_full = isinstance(error, Exception) and not isinstance(error, LuthierError) and is_disk_full(error)
        told = _full(final.parent, needed_bytes, what) if is_full else None
        # Deepest first. rmdir refuses a folder that somebody else has used meanwhile, and that folder then stays.
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if told is not None:
            raise told from error
        raise


def refuse_taken(final: Path) -> None:
    """Raise ConflictError where there is something in `final`, or it is not a folder."""
    # exists() follows links, so a dangling link alone would pass as free.
    if final.is_symlink() or final.exists():
        if final.is_dir() and not final.is_symlink() and not any(final.iterdir()):
            return
        kind = "and has files in it" if final.is_dir() else "and is not a folder"
        raise ConflictError(
            f"{final} already exists {kind}",
            expected="a folder that does not exist yet, or an empty one",
            do="choose another with -o, or remove it first",
        )


def _make_parents(final: Path) -> list[Path]:
    """Make the folders above; returns those that were not there, from the top."""
    made: list[Path] = []
    for folder in reversed(final.parents):
        if folder.is_dir():
            continue
        try:
            folder.mkdir()
        except OSError as error:
            raise _unwritable(folder, error) from error
        made.append(folder)
    # All parents may have existed already, so no mkdir has tested whether this user may write here.
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise _unwritable(final.parent, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return made


def _unwritable(folder: Path, error: OSError) -> RequestError:
    return RequestError(
        f"{folder} cannot be written: {error.strerror or error}",
        expected="a folder that this user may write",
        do="choose another with -o, or correct its permissions",
    )


def _prefix(final: Path) -> str:
    return f".{final.name}.partial-"


def _clear_leftovers(final: Path) -> None:
    for leftover in final.parent.glob(f"{glob.escape(_prefix(final))}*"):
        remove_if_abandoned(leftover)


def _check_room(parent: Path, needed_bytes: int, what: str) -> None:
    if shutil.disk_usage(parent).free < needed_bytes:
        raise _full(parent, needed_bytes, what)


def _full(parent: Path, needed_bytes: int, what: str) -> StorageFullError:
    free = shutil.disk_usage(parent).free
    return StorageFullError(
        f"no room on the disk of {parent} for {what}: {free / 2**20:,.0f} MiB are free; nothing was left there",
        expected=f"about {max(needed_bytes, 1) / 2**20:,.0f} MiB while it is written",
        do="free some space, or write to a larger disk with -o",
    )


def _publish(folder: Path, final: Path) -> None:
    try:
        if not facilities.moves_open_files() and final.is_dir():
            final.rmdir()  # Windows replaces no folder, an empty one neither; this refuses one with files in it
        # Directory over directory: POSIX replaces an empty one in the same step, and refuses one with files in it.
        folder.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        refuse_taken(final)
        raise
    # The rename is an entry of the parent folder; without this fsync it may be lost with the power.
    sync(final.parent)


def register_of(context: Context) -> FolderRegister:
    """The register of a home: unfinished exports, at any destination."""
    return FolderRegister(context.home / "partial")


def remove_abandoned(context: Context) -> list[Path]:
    """Remove what killed exports of this home have left, here and next to their destinations."""
    return register_of(context).remove_abandoned()


def open_to_readers(folder: Path) -> None:
    """Give all files and folders the rights of any that this user makes: some libraries write for the owner only."""
    # The only way to read the umask is to set it. Other threads see 0 for that moment.
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        path.chmod((_FOLDER_MODE if path.is_dir() else _FILE_MODE) & ~umask)
