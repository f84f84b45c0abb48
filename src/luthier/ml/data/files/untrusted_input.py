"""Guards for reading untrusted files: archives, gzip streams, long lines, and JSON.

`check_archive` looks into a ZIP before anything unpacks it: bombs, paths out of the folder, entities that multiply.
Office documents (Open Packaging Conventions, ECMA-376 part 2) and EPUB are ZIP files. Sizes in a ZIP's directory may
lie: the entries' own bytes are counted while they are searched for entities, and the memory of the reading process is
also limited (see `worker_pool`). `open_gzip` bounds what gzip data (RFC 1952) unpacks to: 1 MB may hold 1 GB of the
same byte. `bounded_lines` limits the length of a line, so that one line of 2 GB costs no 2 GB of memory. `strict_loads`
is JSON without its silent traps: a key that comes twice, NaN and Infinity, and nesting too deep.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

from luthier.core.errors import DataError, library_reason
from luthier.core.json_limits import MAX_DEPTH, fault_of, is_shallow

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
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError, OSError) as error:
        raise DataError(
            f"its ZIP archive is broken: {library_reason(error)}",
            expected="a complete file",
            do="download or save it again",
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
                f"its archive has an entry named {name!r}, which points outside the folder",
                expected="names inside the folder of the archive",
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
                # By content, too: a document itself defines which of its parts is read as markup, under any name.
                is_markup = is_markup or block[:_SNIFFED_BYTES].replace(b"\0", b"").lstrip(_BEFORE_MARKUP)[:1] == b"<"
                if not is_markup:
                    break
                total += len(block)
                if total > MAX_UNPACKED_BYTES:
                    raise _bomb(f"its markup unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
                window = tail + block.replace(b"\0", b"")
                if _ENTITY.search(window):
                    raise DataError(
                        f"{entry.filename!r} in its archive declares XML entities, which can expand without limit",
                        expected="markup without entities",
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


_MAX_GZIP_BYTES: Final = 8 << 30
"""As much as one file of a project may have by default."""
_USUAL_RATIO: Final = 20
_BUFFER_BYTES: Final = 1 << 20


def max_unpacked_bytes(num_packed: int) -> int:
    """What that many packed bytes may unpack to: 10 MiB always, then 200 to 1 up to 8 GiB, and 20 to 1 beyond."""
    most = max(_MAX_GZIP_BYTES, _USUAL_RATIO * num_packed)
    return max(RATIO_FROM_BYTES, min(MAX_RATIO * num_packed, most))


def bomb(name: str, num_packed: int, limit: int) -> DataError:
    """The error for a file that unpacks to more than it may."""
    return DataError(
        f"{name} looks like a decompression bomb: its {num_packed:,} bytes unpack to more than {limit:,}",
        expected=f"at most {limit:,} bytes of that many packed ones ({MAX_RATIO} to 1, and 8 GiB)",
        do="check where it came from; if its rows are right, unpack it first and give the unpacked file",
    )


@contextmanager
def open_gzip(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes, in constant memory.

    Raises:
        DataError: while it is read, the unpacked bytes go past the bound.
        gzip.BadGzipFile: the data are no gzip.
        EOFError: the data end early.
        zlib.error: the data are damaged.
    """
    with gzip.open(path, "rb") as unpacked:
        raw = _Counted(cast("IO[bytes]", unpacked), path.name, path.stat().st_size)
        with io.BufferedReader(raw, _BUFFER_BYTES) as file:
            yield file


class _Counted(io.RawIOBase):
    """Counts what is unpacked before the reader keeps any of it."""

    def __init__(self, file: IO[bytes], name: str, num_packed: int) -> None:
        self._file, self._name, self._num_packed = file, name, num_packed
        self._limit, self._num_bytes = max_unpacked_bytes(num_packed), 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end. Raises DataError past the bound."""
        data = self._file.read(len(buffer))
        self._num_bytes += len(data)
        # Before the bytes are handed on: at most one buffer more than the limit is ever in memory.
        if self._num_bytes > self._limit:
            raise bomb(self._name, self._num_packed, self._limit)
        buffer[: len(data)] = data
        return len(data)


MAX_LINE_BYTES = 64 * 2**20
_HEAD_BYTES = 2**16


def bounded_lines(file: IO[bytes], limit: int = MAX_LINE_BYTES) -> Iterator[tuple[bytes, int]]:
    """Each line with its end, and its length in bytes; of a line over `limit` only the first 64 KiB.

    So a line was cut exactly where the length is greater than that of the bytes given.
    """
    while piece := file.readline(limit + 1):
        if len(piece) <= limit:
            yield piece, len(piece)
            continue
        head, length = piece[:_HEAD_BYTES], len(piece)
        while not piece.endswith(b"\n") and (piece := file.readline(_HEAD_BYTES)):
            length += len(piece)
        yield head, length


def too_long(length: int, limit: int = MAX_LINE_BYTES) -> str:
    """What is wrong with a line of `length` bytes, as the reason of a RowProblem."""
    return f"is a line of {length:,} bytes, more than the {limit:,} that one row may have"


class StrictJsonError(ValueError):
    """The text is not JSON as it should be. `line` and `column` count from 1; 0 where the place is not known."""

    def __init__(self, reason: str, line: int = 0, column: int = 0) -> None:
        self.reason, self.line, self.column = reason, line, column
        super().__init__(reason)


def strict_loads(text: str) -> Any:
    """Parse one JSON document.

    Raises:
        StrictJsonError: with the reason and, for bad syntax, line and column.
    """
    if text.startswith("\ufeff"):
        raise StrictJsonError("begins with a byte order mark, which only a whole file may have", 1, 1)
    try:
        found = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise StrictJsonError(_lower_first(error.msg), error.lineno, error.colno) from error
    except RecursionError as error:
        raise StrictJsonError(f"is nested too deeply; expected: at most {MAX_DEPTH} levels") from error
    except StrictJsonError:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise StrictJsonError(_lower_first(str(error))) from error
    # A file of rows may hold as many values as it likes.
    if not is_shallow(text) and (fault := fault_of(found, max_values=0, allows_half=True)) is not None:
        place = f" at {fault.place!r}" if fault.place else ""
        raise StrictJsonError(f"has {fault.came}{place}; expected: {fault.expected}")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise StrictJsonError(f"the key {key!r} appears twice in one object, and only one value can be kept")
            seen.add(key)
    return made


def _constant(name: str) -> Any:
    raise StrictJsonError(f"{name} is not JSON")


# One for all rows: json.loads makes a decoder for each call that has options.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
