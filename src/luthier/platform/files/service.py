"""Use cases: the files of a project: store, find, read, delete and place for training.

An incoming file is written to disk and hashed in pieces, never whole in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import time
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self

from luthier.core.errors import NotFoundError, StorageFullError, UnsupportedError, WorkError
from luthier.core.ids import sha256_file
from luthier.core.system.files import blocks_of, forbid_writing, is_disk_full, sync_file
from luthier.platform.files.store import UPLOAD_PURPOSES, Purpose, StoredFile
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.system.artifact_transfer import ArtifactReader

STALE_SECONDS: Final = 24 * 3600.0
"""How long a partial file without writes is left alone: longer than any transfer pauses."""


class IncomingFile:
    """A partial file in a folder (made where it is missing); gone when the `with` block ends, unless it was moved away.

    Raises:
        StorageFullError: From `write` and `finish`: the disk has no room.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{uuid.uuid4().hex}.partial"
        # Unbuffered: pieces are large already, and a full disk shows at the write and not at the close.
        self._file = self.path.open("xb", buffering=0)
        self._sha256, self.num_bytes = hashlib.sha256(), 0
        self._is_finished = False

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        with _disk_full_explained(self.path):
            rest = memoryview(data)
            while rest:
                # A raw file may take only a part of what it is given.
                rest = rest[self._file.write(rest) or 0 :]
        self._sha256.update(data)
        self.num_bytes += len(data)

    def finish(self) -> str:
        """Bring all of it to the disk and close it, once; returns its SHA-256 in hexadecimal digits."""
        if self._is_finished:
            return self._sha256.hexdigest()
        with _disk_full_explained(self.path):
            # Before the database names the file: after a power cut a row must not point to an empty one.
            sync_file(self._file)
            self._file.close()
        self._is_finished = True
        return self._sha256.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


def sweep_incoming(folder: Path) -> None:
    """Remove partial files that a process which died has left behind."""
    oldest = time.time() - STALE_SECONDS
    for path in folder.glob("*.partial"):
        with contextlib.suppress(OSError):  # another process may sweep the same folder
            if path.stat().st_mtime < oldest:
                path.unlink()


@contextlib.contextmanager
def _disk_full_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise StorageFullError(
            f"no room for a file in {path.parent}: {error.strerror}",
            expected="free space for the uploaded file",
            do="free some disk space, then send it again",
        ) from error


MAX_FILENAME_LENGTH: Final = 255
_BLOCK_BYTES: Final = 1 << 20
_proved: Final[dict[Path, tuple[int, ...]]] = {}
"""The state of files in the file system when this process had read them whole and verified their digest."""
_SUFFIX = re.compile(r"(\.[a-z0-9]{1,10})?\.[a-z0-9]{1,10}")


def incoming_file(context: Context) -> IncomingFile:
    """Where the bytes of a new file are written to, for `keep_file`. Use it in a `with` block."""
    return IncomingFile(context.artifacts.incoming)


def keep_file(
    context: Context,
    project_id: str,
    incoming: IncomingFile,
    *,
    filename: str,
    purpose: Purpose,
    expires_after_seconds: int | None = None,
    may_be_empty: bool = False,
    is_result: bool = False,
) -> StoredFile:
    """Make a file of the project from all that was written. It is `processed` immediately; jobs check its rows.

    Args:
        context: The home.
        project_id: The project.
        incoming: The bytes, from `incoming_file`.
        filename: The client's name of the file.
        purpose: What it is for.
        expires_after_seconds: Its lifetime; None forever.
        may_be_empty: Whether an empty one is kept, where the work with it says what is wrong with each file.
        is_result: Whether a job has made it: such a file is kept whatever the quota of the project.

    Raises:
        UnsupportedError: A file from outside that has no bytes.
        FileQuotaError: The files of the project would take more than they may.
        StorageFullError: The disk is full.
        WorkError: Artifacts are kept elsewhere, and that place failed.
    """
    # What a job has made may be empty, such as the errors of a batch without any.
    if incoming.num_bytes == 0 and purpose in UPLOAD_PURPOSES and not may_be_empty:
        raise UnsupportedError(
            f"{safe_filename(filename)!r} is an empty file",
            expected="a file of at least one byte",
            do="check that the file is complete, and send it again",
            code="empty_file",
            param="file",
        )
    # `finish` has synced the bytes to the disk before the row names them.
    return context.files.add(
        project_id,
        incoming.path,
        incoming.finish(),
        filename=safe_filename(filename),
        purpose=purpose,
        expires_after_seconds=expires_after_seconds,
        is_result=is_result,
    )


def add_file(
    context: Context,
    project_id: str,
    path: Path,
    *,
    filename: str,
    purpose: Purpose,
    expires_after_seconds: int | None = None,
    is_result: bool = False,
) -> StoredFile:
    """Make a file of the project from a copy of one on this machine, such as the results of a job.

    Args:
        context: The home.
        project_id: The project.
        path: The file on this machine.
        filename: Its name for people.
        purpose: What it is for.
        expires_after_seconds: As of `keep_file`.
        is_result: As of `keep_file`.

    Raises:
        NotFoundError: There is no file `path`.
        FileQuotaError: The files of the project would take more than they may.
        StorageFullError: The disk is full.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {path}", expected="a file that is not empty", do="check the path")
    with incoming_file(context) as incoming:
        for block in blocks_of(path):
            incoming.write(block)
        return keep_file(
            context,
            project_id,
            incoming,
            filename=filename,
            purpose=purpose,
            expires_after_seconds=expires_after_seconds,
            is_result=is_result,
        )


def get_file(context: Context, project_id: str, file_id: str) -> StoredFile:
    """One file.

    Raises:
        NotFoundError: The project has no such file.
    """
    return context.files.get(project_id, file_id)


def list_files(
    context: Context,
    project_id: str,
    *,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> tuple[list[StoredFile], bool]:
    """One page of the files of a project.

    Args:
        context: The home.
        project_id: The project.
        purpose: Only files of this purpose.
        after: The id of the file behind which the page begins.
        limit: The most files of the page.
        order: Newest first ("desc") or oldest first ("asc").

    Returns:
        The files, and whether more follow.

    Raises:
        RequestError: `after` was never a file of this project.
    """
    return context.files.list(project_id, purpose=purpose, after=after, limit=limit, order=order)


def file_names(context: Context, project_id: str, file_ids: Iterable[str]) -> dict[str, str]:
    """The names of files by their ids; those that the project does not have are left out."""
    return context.files.names(project_id, file_ids)


def delete_file(context: Context, project_id: str, file_id: str) -> StoredFile:
    """Delete a file; its content goes with the last file that has it.

    Raises:
        NotFoundError: The project has no such file.
        ConflictError: It holds the rows of a dataset.
    """
    return context.files.delete(project_id, file_id)


def read_file(context: Context, file: StoredFile) -> Iterator[bytes]:
    """The content of a file, a block at a time; the last block comes when the digest of all of it was proved.

    Raises:
        NotFoundError: The file was deleted; before the first block.
        WorkError: The content is lost (before the first block) or damaged (in place of the last).
    """
    blocks = _proved_blocks(context.files.open(file), file)
    # Pulled here: an error before the first block can still become a status, later the answer has begun.
    first = next(blocks, None)  # a small file is proved before any of it is sent
    return blocks if first is None else itertools.chain((first,), blocks)


def local_path(context: Context, file: StoredFile) -> Path:
    """A copy of a file on this machine, read-only and proved by its digest, with the suffix of its filename.

    Its folder is named by the digest alone. A job that has to survive the file's deletion keeps its content with
    `context.artifacts.link`.

    Raises:
        NotFoundError: The file was deleted.
        WorkError: Its content is lost or damaged.
    """
    target = place_of(context, file)
    if _is_proved(target, file.sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # may_share is safe since nothing writes to it: the mode below forbids that to both names.
    context.artifacts.fetch(file.sha256, target, may_share=True)
    forbid_writing(target)
    return target


def place_of(context: Context, file: StoredFile) -> Path:
    """Where `local_path` places a file, whether it did so yet or not; data about a file may be next to it."""
    suffix = suffix_of(file.filename)
    return context.settings.file_cache_folder / file.sha256 / f"file{suffix if _SUFFIX.fullmatch(suffix) else ''}"


def sweep_files(context: Context) -> None:
    """Remove what has expired, what broke off, and local copies of files that are gone."""
    context.files.sweep()
    context.uploads.sweep()
    sweep_incoming(context.artifacts.incoming)
    for cache in (context.settings.file_cache_folder, context.settings.answers_folder):
        for folder in cache.iterdir() if cache.is_dir() else ():
            # Folders of both caches are named by the digest of the file that they belong to.
            if not context.artifacts.has(folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def safe_filename(name: str) -> str:
    """What is kept of the name that a client gives: its last part, of printable characters, cut at 255 of them."""
    # Both separators: a client on Windows may send a whole path.
    last = re.split(r"[/\\]", name)[-1]
    # Category C: control characters, and the direction marks that can make a name look like another.
    kept = "".join(c for c in last if unicodedata.category(c)[0] != "C").strip()
    if kept in ("", ".", ".."):
        return "file"
    stem, suffix = os.path.splitext(kept)  # noqa: PTH122 - a name, not a path
    suffix = suffix[:MAX_FILENAME_LENGTH]
    return stem[: MAX_FILENAME_LENGTH - len(suffix)] + suffix


def _is_proved(path: Path, sha256: str) -> bool:
    """Whether a file has the digest; it is not read again while the file system says that it is unchanged."""
    try:
        seen = path.stat()
    except FileNotFoundError:
        return False
    # ctime as well: mtime can be set back after a change, ctime cannot.
    marks = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    if _proved.get(path) != marks:
        if sha256_file(path) != sha256:
            return False
        _proved[path] = marks
    return True


def suffix_of(filename: str) -> str:
    """What says the format of a file: `.csv`, and of a packed one `.csv.gz`; in small letters."""
    path = Path(filename)
    suffix = path.suffix.lower()
    return f"{Path(path.stem).suffix.lower()}.gz" if suffix == ".gz" else suffix


def _proved_blocks(reader: ArtifactReader, file: StoredFile) -> Iterator[bytes]:
    digest, held = hashlib.sha256(), b""
    with reader:
        while block := reader.read(_BLOCK_BYTES):
            digest.update(block)
            # One block is held back until the digest is known: a reader that got all of them has a whole file.
            if held:
                yield held
            held = block
    if digest.hexdigest() != file.sha256:
        raise WorkError(
            f"the content of {file.file_id} has changed on its disk: it has digest {digest.hexdigest()}",
            expected=f"digest {file.sha256}",
            do="check the disk, and upload the file again",
        )
    if held:
        yield held
