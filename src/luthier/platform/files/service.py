"""Use cases: keep, find, read and delete the files of a project, and lay them out to be trained on."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.digest import sha256_file
from luthier.core.errors import NotFoundError, WorkError
from luthier.platform.files.incoming import IncomingFile, sweep_incoming
from luthier.platform.files.records import Purpose, StoredFile
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.system.artifact_transfer import ArtifactReader

MAX_FILENAME_LENGTH: Final = 255
_BLOCK_BYTES: Final = 1 << 20
_proved: Final[dict[Path, tuple[int, ...]]] = {}
"""What the file system said of files when this process has read them whole and found their digest right."""
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
) -> StoredFile:
    """Make a file of the project from all that was written. It is `processed` at once; jobs check its rows.

    Args:
        context: The home.
        project_id: The project.
        incoming: The bytes, from `incoming_file`.
        filename: The client's name of the file.
        purpose: What it is for.
        expires_after_seconds: Its lifetime; None for ever.

    Raises:
        StorageFullError: The disk is full.
        WorkError: Artifacts are kept elsewhere, and that place failed.
    """
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
    # may_share is safe since nobody writes to it: the mode below forbids that to both names.
    context.artifacts.fetch(file.sha256, target, may_share=True)
    target.chmod(0o444)
    return target


def place_of(context: Context, file: StoredFile) -> Path:
    """Where `local_path` lays a file out, whether it did so yet or not; what is kept of a file may lie beside it."""
    suffix = suffix_of(file.filename)
    return context.settings.file_cache_folder / file.sha256 / f"file{suffix if _SUFFIX.fullmatch(suffix) else ''}"


def sweep_files(context: Context) -> None:
    """Remove what has expired, what broke off, and what this machine has laid out of files that are gone."""
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
    # Category C: control characters, and the direction marks by which a name can look like another.
    kept = "".join(c for c in last if unicodedata.category(c)[0] != "C").strip()
    if kept in ("", ".", ".."):
        return "file"
    stem, suffix = os.path.splitext(kept)  # noqa: PTH122 - a name, not a path
    suffix = suffix[:MAX_FILENAME_LENGTH]
    return stem[: MAX_FILENAME_LENGTH - len(suffix)] + suffix


def _is_proved(path: Path, sha256: str) -> bool:
    """Whether a file has the digest; it is not read again while the file system says that nobody has touched it."""
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
