"""Use cases: the files of a project: store, find, read, delete, place for training, and upload in parts.

An incoming file is written to disk and hashed in pieces, never whole in memory. Parts of an upload may come in any
order and over several connections.
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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from luthier.core.errors import NotFoundError, RequestError, StorageFullError, UnsupportedError, WorkError
from luthier.core.ids import sha256_file
from luthier.core.system.files import forbid_writing, is_disk_full, sync_file
from luthier.platform.files.store import UPLOAD_PURPOSES, Purpose, StoredFile, Upload, UploadPart, UploadPurpose
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            expected="free space for the file that came in",
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
) -> StoredFile:
    """Make a file of the project from all that was written. It is `processed` immediately; jobs check its rows.

    Args:
        context: The home.
        project_id: The project.
        incoming: The bytes, from `incoming_file`.
        filename: The client's name of the file.
        purpose: What it is for.
        expires_after_seconds: Its lifetime; None for ever.
        may_be_empty: Whether an empty one is kept, where the work with it says what is wrong with each file.

    Raises:
        UnsupportedError: A file from outside that has no bytes.
        StorageFullError: The disk is full.
        WorkError: Artifacts are kept elsewhere, and that place failed.
    """
    # What a job has made may be empty, such as the errors of a batch without any.
    if incoming.num_bytes == 0 and purpose in UPLOAD_PURPOSES and not may_be_empty:
        raise UnsupportedError(
            f"{safe_filename(filename)!r} is an empty file",
            expected="a file of at least one byte",
            do="check that the file was written to the end, and send it again",
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
    )


def add_file(context: Context, project_id: str, path: Path, *, filename: str, purpose: Purpose) -> StoredFile:
    """Make a file of the project from a copy of one on this machine, such as the results of a job.

    Raises:
        NotFoundError: There is no file `path`.
        StorageFullError: The disk is full.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {path}", expected="a file to keep", do="check the path")
    with incoming_file(context) as incoming, path.open("rb") as reader:
        while block := reader.read(_BLOCK_BYTES):
            incoming.write(block)
        return keep_file(context, project_id, incoming, filename=filename, purpose=purpose)


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


MAX_PART_BYTES: Final = 64 << 20


def create_upload(
    context: Context,
    project_id: str,
    *,
    filename: str,
    purpose: UploadPurpose,
    mime_type: str,
    num_bytes: int,
    file_expires_after_seconds: int | None = None,
) -> Upload:
    """Begin an upload, which must be complete within an hour.

    Args:
        context: The home.
        project_id: The project that the file will belong to.
        filename: As the client names it; made safe here.
        purpose: What the file may be used for.
        mime_type: Its media type.
        num_bytes: The size of the whole file.
        file_expires_after_seconds: How long the file is kept; None for no limit.
    """
    return context.uploads.create(
        project_id,
        filename=safe_filename(filename),
        purpose=purpose,
        mime_type=mime_type,
        num_bytes=num_bytes,
        file_expires_after_seconds=file_expires_after_seconds,
    )


def pending_upload(context: Context, project_id: str, upload_id: str) -> Upload:
    """An upload that still takes parts.

    Raises:
        NotFoundError: The project has no such upload.
        ConflictError: It is no longer pending.
    """
    return context.uploads.pending(project_id, upload_id)


def keep_part(context: Context, project_id: str, upload_id: str, incoming: IncomingFile) -> UploadPart:
    """Make a part of all that was written.

    Raises:
        NotFoundError: The project has no such upload.
        ConflictError: The upload is no longer pending.
        RequestError: The part has no bytes, or more than the upload takes.
    """
    if incoming.num_bytes == 0:
        raise RequestError("a part without bytes", expected="at least one byte", do="send the part with its content")
    return context.uploads.add_part(project_id, upload_id, incoming.path, incoming.finish())


def complete_upload(
    context: Context, project_id: str, upload_id: str, part_ids: Sequence[str], md5: str | None = None
) -> tuple[Upload, StoredFile]:
    """Put the parts together. A repeated call returns the same file, since answers get lost.

    Args:
        context: The home.
        project_id: The project.
        upload_id: The upload.
        part_ids: The ids of all parts, in the order of the file.
        md5: The MD5 that the whole file must have, in hexadecimal digits; None for any.

    Raises:
        RequestError: Size or MD5 differ from what was announced, or a part is not of this upload.
        NotFoundError: The project has no such upload.
        ConflictError: It was cancelled or has expired.
    """
    # A client that lost the answer sends the request again: it gets the file and not a conflict.
    if (done := _completed(context, project_id, upload_id)) is not None:
        return done
    try:
        _complete(context, project_id, upload_id, part_ids, md5)
    except (RequestError, WorkError):
        if (done := _completed(context, project_id, upload_id)) is None:
            raise
        return done  # another request has completed it meanwhile, and the parts are gone
    upload = context.uploads.get(project_id, upload_id)
    return upload, context.files.get(project_id, str(upload.file_id))


def cancel_upload(context: Context, project_id: str, upload_id: str) -> Upload:
    """Cancel an upload.

    Raises:
        NotFoundError: The project has no such upload.
        ConflictError: It is no longer pending.
    """
    return context.uploads.cancel(project_id, upload_id)


def _completed(context: Context, project_id: str, upload_id: str) -> tuple[Upload, StoredFile] | None:
    upload = context.uploads.get(project_id, upload_id)
    if upload.status != "completed" or upload.file_id is None:
        return None
    return upload, context.files.get(project_id, upload.file_id)


def _complete(context: Context, project_id: str, upload_id: str, part_ids: Sequence[str], md5: str | None) -> None:
    upload = context.uploads.pending(project_id, upload_id)
    if len(set(part_ids)) != len(part_ids):
        raise RequestError("part_ids names a part twice", expected="each part once", do="correct part_ids")
    parts = context.uploads.parts(upload_id, part_ids)
    # Before anything is copied: the sizes are in the database.
    if (total := sum(part.num_bytes for part in parts)) != upload.num_bytes:
        raise RequestError(
            f"the parts have {total} bytes together",
            expected=f"{upload.num_bytes} bytes, as announced when the upload began",
            do="add what is missing, name all parts in part_ids, or begin another upload",
        )
    with IncomingFile(context.artifacts.incoming) as incoming:
        found = _put_together(context, parts, incoming)
        if md5 is not None and md5.lower() != found:
            raise RequestError(
                f"the file has the MD5 {found}",
                expected=f"{md5}, as the request says",
                do="send the damaged part again and name the new one, or correct the order of part_ids",
            )
        context.uploads.complete(upload, incoming.path, incoming.finish())


def _put_together(context: Context, parts: Sequence[UploadPart], incoming: IncomingFile) -> str:
    """Write all parts, each proved by its digest; returns the MD5 of the whole."""
    # The checksum of OpenAI's API. It finds damage alone, and FIPS builds of OpenSSL refuse it without this flag.
    md5 = hashlib.md5(usedforsecurity=False)
    for part in parts:
        sha256 = hashlib.sha256()
        with context.uploads.open_part(part) as reader:
            while block := reader.read(_BLOCK_BYTES):
                sha256.update(block)
                md5.update(block)
                incoming.write(block)
        if sha256.hexdigest() != part.sha256:
            raise WorkError(
                f"the content of {part.part_id} has changed on its disk",
                expected=f"digest {part.sha256}",
                do="check the disk, add the part again and name the new one",
            )
    return md5.hexdigest()
