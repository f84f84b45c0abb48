"""Files that survive a crash: synced writes, full disks, locks between processes, scratch folders.

A command writes into a temporary file or folder next to its output and renames it; with `disk_full_explained` around
that, no part of the output stays on a full disk and the error (StorageFullError) names the place.

`kill -9` runs no clean-up, so a folder that is only removed at the end of a block stays for good. A scratch folder is
held by a lock of the kernel, which ends with its process: one without a holder is abandoned, and the process that makes
the next one there, or reads a register, removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from luthier.core.errors import ConflictError, LuthierError, StorageFullError
from luthier.core.system import facilities


def expanded(path: str | Path) -> Path:
    """A path with the folder of a user in place of a leading `~` or `~USER`.

    A file may begin with it, too, such as `~$rows.xlsx` of a spreadsheet program: where there is no such user the path
    stays, while `Path.expanduser` raises a RuntimeError.
    """
    try:
        return Path(os.path.expanduser(path))  # noqa: PTH111 - for that difference
    except ValueError:  # a zero character, which no name of a user has
        return Path(path)


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder, is on the disk.

    Raises:
        OSError: It cannot be opened, or the disk fails.
    """
    descriptor = facilities.open_to_sync(path)
    if descriptor is None:
        return
    try:
        facilities.sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_file(file: IO[bytes] | IO[str]) -> None:
    """Wait until all that was written to an open file is on the disk.

    Raises:
        OSError: The disk is full, or fails.
    """
    # flush moves Python's buffer to the kernel, fsync the kernel's to the disk: without the first the second misses it.
    file.flush()
    facilities.sync_descriptor(file.fileno())


def sync_tree(folder: Path) -> None:
    """Wait until a folder and all that is in it are on the disk.

    Raises:
        OSError: One of them cannot be opened, or the disk fails.
    """
    for path in [*folder.rglob("*"), folder]:
        sync(path)


_ERRNOS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# Libraries that write by themselves (safetensors, polars, SQLite) raise their own errors.
_WORDS: Final = (
    *("No space left on device", "Disk quota exceeded", "StorageFull", "database or disk is full"),
    "File too large (os error 27)",  # polars
)


def cut_partial_line(path: Path) -> None:
    """Remove what a kill has left behind the last whole line of a file; makes the file where there is none.

    Raises:
        OSError: It cannot be written, or the disk fails.
    """
    if not path.exists():
        path.touch()
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 16))
            file.seek(start)
            block = file.read(end - start)
            if (place := block.rfind(b"\n")) >= 0:
                end = start + place + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            sync_file(file)


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
    """Why there is no room, in one line: of the error, or of its cause where it has no text."""
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
        error: the error of the disk.
        place: what was being written, or the folder of it.
        expected: how much room is needed; empty for free space.
        do: what helps; empty for the usual advice.
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


def blocks_of(path: Path, num_bytes: int = 1 << 20) -> Iterator[bytes]:
    """The content of a file, block by block."""
    with path.open("rb") as file:
        while block := file.read(num_bytes):
            yield block


def git_id(path: Path) -> str:
    """The id that git gives a file's content (git-hash-object), read in blocks; a checksum, not for security."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    for block in blocks_of(path):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path, *, expected: str = "", do: str = "") -> Iterator[IO[bytes]]:
    """A new file to write, which takes the place of `path` where the block ends without an error.

    After a crash or a power cut there is the old file or the whole new one, and never a part of it.

    Args:
        path: The file, in a folder that is there.
        expected: How much room it takes, for the error of a full disk; empty for the usual text.
        do: What helps then; empty for the usual advice.

    Raises:
        StorageFullError: The disk is full.
    """
    # In the same folder, since a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN_BYTES)}")
    try:
        with disk_full_explained(path, expected=expected, do=do):
            with temporary.open("xb") as file:
                yield file
                # Before the rename: else a power cut could leave the new name with an empty file.
                sync_file(file)
            replace_file(temporary, path)
            # The name itself is on the disk only once its folder is.
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all; an older one is replaced.

    Raises:
        StorageFullError: the disk is full.
    """
    expected = f"about {len(content):,} bytes free for it"
    with replacing(path, expected=expected, do="free some disk space, then write it again") as file:
        file.write(content)


def replace_text(path: Path, text: str) -> None:
    """As `replace_bytes`, of a text (UTF-8).

    Raises:
        StorageFullError: the disk is full.
    """
    replace_bytes(path, text.encode("utf-8", errors="backslashreplace"))


_PAUSE_SECONDS = 0.02
_REPLACE_SECONDS: Final = 5.0


def replace_file(source: Path, target: Path) -> None:
    """Give a file the name of another one, which is replaced in one step: others see the old one or the new one.

    Where an open file keeps its name (Windows), this waits for readers, virus scanners and indexers, which have it open
    for moments.

    Args:
        source: The new file, in a folder of the same file system; or a folder, where `target` is free.
        target: The name that it gets.

    Raises:
        OSError: It cannot be replaced, or is still open after some seconds.
    """
    deadline = time.monotonic() + _REPLACE_SECONDS
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            # Elsewhere it is a matter of rights, which do not change by waiting.
            if facilities.moves_open_files() or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def forbid_writing(path: Path) -> None:
    """Take the right to write to a file from everybody.

    Nothing where open files keep their place (Windows): a read-only file can be neither replaced nor removed there.
    """
    if facilities.moves_open_files():
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def remove_locked(folder: Path, lock: Path) -> None:
    """Remove a folder while this process holds a lock in it.

    Where open files cannot be removed (Windows), folder and lock stay, and all else goes.

    Args:
        folder: The folder.
        lock: The file of the lock, in that folder.
    """
    if facilities.moves_open_files():
        shutil.rmtree(folder)
        return
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry != lock:
            entry.unlink()


@contextmanager
def file_lock(path: Path, *, what: str, timeout_seconds: float) -> Iterator[int]:
    """Hold an exclusive lock on `path` (made where it is missing, never deleted) while the block runs.

    Under a second is not enough where `is_held` is used, since asking takes the lock for a moment.

    Yields the descriptor: a process that inherits it holds the lock, too, until it ends.

    Args:
        path: the file of the lock.
        what: what the lock represents, as text, for the message ("run run-2026...", "the database").
        timeout_seconds: how long to wait for another holder.

    Raises:
        ConflictError: another process still holds it after that time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Never deleted: a process could otherwise lock a file that another one has just unlinked and made again.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | facilities.BINARY, 0o600)
    try:
        deadline = time.monotonic() + timeout_seconds
        while not facilities.try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise ConflictError(
                    f"{what} is in use by another process",
                    expected=f"the lock {path} to be free within {timeout_seconds:g} s",
                    do="wait until that process has ended, or stop it, and try again",
                )
            time.sleep(_PAUSE_SECONDS)
        yield descriptor
    finally:
        # Closing releases the lock, unless a child process still has the descriptor open.
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a living process holds the exclusive lock on `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared: two processes that ask at the same moment do not take each other for the holder.
        return not facilities.try_lock(descriptor, is_shared=True)
    finally:
        os.close(descriptor)


SHORT_TEMPORARY: Final = Path("/tmp")  # noqa: S108 - folders of mode 0700 are made in it
"""For what needs a short path, such as a socket, where the usual folder of temporary files has a long one."""
_TOKEN_BYTES: Final = 8
_UNNAMED: Final = ".unnamed-"


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder of this user alone, deleted when the block ends; remains of killed processes are deleted first.

    Args:
        parent: An existing folder.
        prefix: The beginning of its name, before 16 hexadecimal digits. Nothing else in `parent` has such a name.

    Raises:
        OSError: the folder cannot be made.
    """
    # Here, since no job sweeps these places.
    remove_abandoned(parent, prefix)
    # A folder is locked from the moment it has its name: it is never taken for an abandoned one.
    folder = Path(tempfile.mkdtemp(prefix=_UNNAMED, dir=parent))
    final = parent / f"{prefix}{secrets.token_hex(_TOKEN_BYTES)}"
    try:
        with holding(folder, must=False, final=final):
            # The lock is on the open folder, not on its name, so renaming keeps it.
            folder = folder.rename(final)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path, prefix: str) -> list[Path]:
    """Remove the folders of `scratch_folder` with this prefix that no process holds; returns them."""
    name = re.compile(re.escape(prefix) + f"[0-9a-f]{{{2 * _TOKEN_BYTES}}}")
    return [folder for folder in parent.iterdir() if name.fullmatch(folder.name) and remove_if_abandoned(folder)]


def remove_abandoned_temporary(*parents: Path) -> list[Path]:
    """Remove the folders of `scratch_folder` with a prefix `luthier-...-` that no process holds; returns them.

    Each kind of work removes its own when it begins; this is for those whose work does not begin again.

    Args:
        parents: Folders of temporary files; those that are not there or cannot be read are passed over.
    """
    name = re.compile(f"luthier-[a-z]+(-[a-z]+)*-[0-9a-f]{{{2 * _TOKEN_BYTES}}}")
    found = []
    for parent in dict.fromkeys(parents):
        with contextlib.suppress(OSError):
            found += [one for one in parent.iterdir() if name.fullmatch(one.name) and remove_if_abandoned(one)]
    return found


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
def holding(path: Path, *, must: bool = True, final: Path | None = None) -> Iterator[None]:
    """Hold a file or folder, which the kernel lets go when this process ends.

    Args:
        path: The file or folder.
        must: Whether the lock is required. False continues without it, as on some network disks; there nothing is ever
            taken for abandoned.
        final: The name that it gets within the block, if another.

    Raises:
        OSError: another process holds it.
    """
    beside = None if facilities.can_lock_folders() else _lock_beside(final or path)
    # CLOEXEC: a child process would otherwise keep the lock after this process has died.
    if beside is None:
        descriptor = os.open(path, os.O_RDONLY | facilities.CLOSE_ON_EXEC)
    else:
        path.lstat()  # one that is not there cannot be held
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | facilities.BINARY | facilities.CLOSE_ON_EXEC, 0o600)
    try:
        try:
            if not facilities.try_lock(descriptor):
                raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", str(path))
        except OSError:
            if must:
                raise
        yield
    finally:
        os.close(descriptor)
        if beside is not None:
            with contextlib.suppress(OSError):  # refused where another process has it open by now
                beside.unlink()


def _lock_beside(path: Path) -> Path:
    """The file that is locked in place of a folder, or of a file that is renamed while it is held."""
    return path.with_name(f".{path.name}.held")


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
            final = self._place / entry.name.removeprefix(".")
            with holding(entry, must=False, final=final):
                entry = entry.rename(final)
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
