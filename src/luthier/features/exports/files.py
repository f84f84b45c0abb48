"""Use cases: hand out what an export holds: one file, all of them as a tar, its card."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.core.records.export import ServerExport
from luthier.features.serving.made_exports import made_export
from luthier.platform.home.context import Context

_BLOCK_BYTES: Final = 1 << 20
_MAX_CARD_BYTES: Final = 256 << 10
_RECORD_BYTES: Final = tarfile.RECORDSIZE
_FILE_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar that is made while it is read.

    Attributes:
        name: The file name to offer.
        num_bytes: The exact size of the whole archive.
        blocks: Its content, in pieces of at most 1 MiB.
    """

    name: str
    num_bytes: int
    blocks: Iterator[bytes]


def file_of(context: Context, caller: Caller, export_id: str, path: str) -> Path:
    """A file of an export, by its path below the folder. Raises NotFoundError for all that is not listed in it."""
    found, folder = made_export(context, caller, export_id)
    # Membership in the manifest is the traversal guard: `../x` and absolute paths are never listed there.
    if found.document is None or path not in found.document.files or not (folder / path).is_file():
        raise NotFoundError(
            f"no file {path[:200]!r} in the export {export_id}",
            expected="one of the files that it lists",
            do="see its page",
        )
    return folder / path


def card_of(context: Context, caller: Caller, export_id: str) -> str:
    """The card of an export, as Markdown. Raises NotFoundError, ConflictError while it is not made."""
    from luthier.ml.export.bundle.manifest import CARD

    # A card is Markdown from the disk and goes into a page: the bound keeps a damaged file from filling memory.
    with file_of(context, caller, export_id, CARD).open("rb") as file:
        return file.read(_MAX_CARD_BYTES).decode("utf-8", "replace")


def archive_of(context: Context, caller: Caller, export_id: str) -> Archive:
    """All files of an export as one tar, in a folder named by its id.

    Raises:
        NotFoundError: No such export, or one of its files is gone.
        ConflictError: The export is not made yet.
    """
    found, folder = made_export(context, caller, export_id)
    entries = [_entry(found, folder, path) for path in sorted(found.document.files)] if found.document else []
    # A tar ends with two zero blocks and is padded to a full record of 20 blocks. The size has to be exact
    # because it is sent as Content-Length before the first byte is read.
    num_bytes = sum(len(head) + _padded(size) for head, _, size in entries) + 2 * tarfile.BLOCKSIZE
    total = -(-num_bytes // _RECORD_BYTES) * _RECORD_BYTES
    return Archive(f"{export_id}.tar", total, _written(entries, total))


def _entry(found: ServerExport, folder: Path, path: str) -> tuple[bytes, Path, int]:
    file = folder / path
    if not file.is_file():
        raise NotFoundError(
            f"{path} of the export {found.export_id} is gone",
            expected="the files as they were written",
            do="export again",
        )
    about = tarfile.TarInfo(f"{found.export_id}/{path}")
    # Fixed owner, mode and time: two downloads of one export are the same bytes.
    about.size, about.mode, about.mtime = file.stat().st_size, _FILE_MODE, int(found.created_at)
    # PAX, not USTAR: names over 100 characters and files over 8 GiB need its extended headers.
    return about.tobuf(tarfile.PAX_FORMAT), file, about.size


def _written(entries: list[tuple[bytes, Path, int]], total: int) -> Iterator[bytes]:
    written = 0
    for head, path, size in entries:
        yield head
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
        yield b"\0" * (_padded(size) - size)
        written += len(head) + _padded(size)
    yield b"\0" * (total - written)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
