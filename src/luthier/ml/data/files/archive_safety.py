"""Look into an archive before anything unpacks it: bombs, ways out of the folder, entities that multiply.

Office documents (Open Packaging Conventions, ECMA-376 part 2) and EPUB are ZIP files. Sizes in a ZIP's directory may
lie: the entries' own bytes are counted while they are searched for entities, and the memory of the reading process is
limited besides (see `worker_pool`).
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Final

from luthier.core.errors import DataError
from luthier.core.library_errors import library_reason

MAX_UNPACKED_BYTES: Final = 512 * 2**20
MAX_RATIO: Final = 200
RATIO_FROM_BYTES: Final = 10 * 2**20
MAX_ENTRIES: Final = 20_000
_BLOCK_BYTES = 2**20
_MARKUP = (".xml", ".rels", ".opf", ".ncx", ".xhtml", ".html", ".htm", ".vml", ".svg")
_SNIFFED_BYTES = 256
_BEFORE_MARKUP = b"\xef\xbb\xbf\xff\xfe \t\r\n"
_DRIVE = re.compile(r"^[A-Za-z]:")
# Without NULs, so that UTF-16 and UTF-32 hide nothing.
_ENTITY = re.compile(rb"<!\s*ENTITY", re.IGNORECASE)
_DO: Final = "do not open it; get it again from its source"


def check_archive(path: Path) -> frozenset[str]:
    """The names of the entries of a ZIP file that is safe to read.

    Raises:
        DataError: no ZIP or a broken one; more than 20,000 entries; more than 512 MiB unpacked; an entry over 10 MiB
            that is packed more than 200 to 1; a name that leads out of the folder; an encrypted entry; markup that
            declares entities ("billion laughs").
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_directory(entries)
            _check_content(archive, entries)
            return frozenset(entry.filename for entry in entries)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise DataError(
            f"its ZIP archive is broken: {library_reason(error)}", expected="a whole file", do="get or save it again"
        ) from error


def _check_directory(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise DataError(f"{len(entries):,} entries in its archive", expected=f"at most {MAX_ENTRIES:,}", do=_DO)
    for entry in entries:
        # As written in the archive: zipfile cuts `filename` at a NUL, which would hide what follows.
        name = entry.orig_filename
        parts = re.split(r"[/\\]", name)
        # Backslashes and drive letters count on Windows alone, but the document may be unpacked there.
        if ".." in parts or name.startswith(("/", "\\")) or _DRIVE.match(name) or "\0" in name:
            raise DataError(
                f"its archive has an entry named {name!r}, which leads out of the folder",
                expected="names below the folder of the archive",
                do=_DO,
            )
        if entry.flag_bits & 1:
            raise DataError(
                f"the entry {name!r} of its archive is encrypted",
                expected="a document without password",
                do="save it without a password",
            )
        if entry.file_size > RATIO_FROM_BYTES and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
            raise _bomb(f"{name!r} is {entry.file_size:,} bytes packed in {entry.compress_size:,}")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKED_BYTES:
        raise _bomb(f"it unpacks to {total:,} bytes")


def _check_content(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    total = 0
    for entry in entries:
        tail, is_markup = b"", entry.filename.lower().endswith(_MARKUP)
        with archive.open(entry) as file:
            while block := file.read(_BLOCK_BYTES):
                # By content, too: a document says itself which of its parts is read as markup, whatever its name.
                is_markup = is_markup or block[:_SNIFFED_BYTES].replace(b"\0", b"").lstrip(_BEFORE_MARKUP)[:1] == b"<"
                if not is_markup:
                    break
                total += len(block)
                if total > MAX_UNPACKED_BYTES:
                    raise _bomb(f"its markup unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
                window = tail + block.replace(b"\0", b"")
                if _ENTITY.search(window):
                    raise DataError(
                        f"{entry.filename!r} in its archive declares XML entities, which can multiply without end",
                        expected="plain markup",
                        do=_DO,
                    )
                # An overlap, so that a declaration across two blocks is found.
                tail = window[-64:]


def _bomb(what: str) -> DataError:
    return DataError(
        f"looks like a decompression bomb: {what}",
        expected=f"at most {MAX_UNPACKED_BYTES:,} bytes, none packed more than {MAX_RATIO} to 1",
        do=_DO,
    )
