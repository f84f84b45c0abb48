"""Rows of a data file by their place, without reading what comes before them.

The offsets of a JSONL file's lines are written down once. The rows of any other file are written as JSONL once, so that
they have offsets too. Either way one row costs one seek afterwards, however large the file is.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.core.system.files import replace_file, scratch_folder, sync, sync_tree
from luthier.ml.data.files.source import Source, open_source
from luthier.ml.data.files.untrusted_input import MAX_LINE_BYTES, bounded_lines, too_long
from luthier.ml.data.rows.read_json import read_line

_ENTRY: Final = struct.Struct("<QQ")  # the line that names the row, and where it begins
_HEAD, _ENTRIES, _ROWS = "index.json", "index.bin", "rows.jsonl"
_BOM: Final = b"\xef\xbb\xbf"
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Head:
    """The file that an index was made of: one of the same size and time is the same file.

    Attributes:
        num_rows: rows in the index.
        num_bytes: size of the file.
        changed_ns: its modification time.
        is_copy: the rows were written as JSONL next to the index.
    """

    num_rows: int
    num_bytes: int
    changed_ns: int
    is_copy: bool


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Where the rows of a file are.

    Positions count from 0, lines as in `Row.line`.

    Attributes:
        name: the file's, for messages.
        rows: the JSONL file that the offsets are of: the file itself, or its copy.
        entries: the file of the index, 16 bytes a row.
        num_rows: rows in the index.
        is_copy: whether the rows were written as JSONL for this index; what could not be read is then a text that says
            why.
    """

    name: str
    rows: Path
    entries: Path
    num_rows: int
    is_copy: bool

    def line(self, position: int) -> int:
        """The line that names the row at a position.

        Raises:
            IndexError: there is no such position.
        """
        return self._entry(position)[0]

    def lines(self, start: int = 0, step: int = 1) -> Iterator[int]:
        """The lines from a position on, forward or (step -1) backward."""
        with self._opened() as entries:
            position = start
            while 0 <= position < self.num_rows:
                yield _ENTRY.unpack_from(entries, position * _ENTRY.size)[0]
                position += step

    def position(self, line: int) -> int | None:
        """The position of the row with this line; None where there is none."""
        # Lines ascend with positions, so a binary search finds one in some 20 steps.
        low, high = 0, self.num_rows
        with self._opened() as entries:
            while low < high:
                middle = (low + high) // 2
                found = _ENTRY.unpack_from(entries, middle * _ENTRY.size)[0]
                if found == line:
                    return middle
                low, high = (middle + 1, high) if found < line else (low, middle)
        return None

    def row(self, position: int) -> Row | RowProblem:
        """The row at a position, or why it is none.

        Raises:
            IndexError: there is no such position.
        """
        line, offset = self._entry(position)
        with self.rows.open("rb") as file:
            file.seek(offset)
            raw = file.readline(MAX_LINE_BYTES + 1)
            if len(raw) > MAX_LINE_BYTES:
                return RowProblem(self.name, line, "", "", too_long(len(raw)))
        # In a copy a row is an object; a JSON text is the reason why the row could not be read.
        if self.is_copy and raw.startswith(b'"'):
            return RowProblem(self.name, line, "", "", str(json.loads(raw)))
        return read_line(self.name, line, raw, offset)

    def pieces(self) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Each row by its line with its bytes in pieces that end with a line feed; take them before the next row."""
        with self.rows.open("rb") as file, self._opened() as entries:
            for position in range(self.num_rows):
                line, offset = _ENTRY.unpack_from(entries, position * _ENTRY.size)
                yield line, _pieces(file, offset)

    def _entry(self, position: int) -> tuple[int, int]:
        if not 0 <= position < self.num_rows:
            raise IndexError(position)
        with self.entries.open("rb") as file:
            file.seek(position * _ENTRY.size)
            line, offset = _ENTRY.unpack(file.read(_ENTRY.size))
        return line, offset

    @contextmanager
    def _opened(self) -> Iterator[mmap.mmap | bytes]:
        # An empty file cannot be mapped into memory.
        if not self.num_rows:
            yield b""
            return
        with (
            self.entries.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as entries,
        ):
            yield entries


def open_index(path: Path, folder: Path) -> RowIndex | None:
    """The index of a file in a folder; None where there is none, or the file has changed since."""
    try:
        stat = path.stat()
        head = _Head(**json.loads((folder / _HEAD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if (head.num_bytes, head.changed_ns) != (stat.st_size, stat.st_mtime_ns):
        return None
    rows = folder / _ROWS if head.is_copy else path
    return RowIndex(path.name, rows, folder / _ENTRIES, head.num_rows, head.is_copy)


def is_quick(path: Path) -> bool:
    """Whether the index of a file is made by looking for its line ends only, and in constant memory."""
    source = open_source(path)
    return source.format == "jsonl" and source.is_as_stored


def build_index(path: Path, folder: Path) -> RowIndex:
    """Make the index of a file in a folder, and a copy of the rows where the file is not JSONL.

    Takes constant memory for all files but a JSON document, which is read whole.

    Args:
        path: the data file.
        folder: where the index goes; made where it is missing.

    Raises:
        NotFoundError: there is no such file.
        DataError: the file cannot be read.
        OSError: the index cannot be written.
    """
    source, stat = open_source(path), path.stat()
    is_copy = not is_quick(path)
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder, ".making-") as work:
        with (work / _ENTRIES).open("wb") as entries:
            num_rows = _copy(source, work / _ROWS, entries) if is_copy else _offsets(source, entries)
        head = _Head(num_rows, stat.st_size, stat.st_mtime_ns, is_copy)
        (work / _HEAD).write_text(json.dumps(asdict(head)), encoding="utf-8")
        # All are on the disk before any is renamed: a power cut must not leave a complete head with a short index.
        sync_tree(work)
        # The head comes last: until it exists, open_index treats the folder as one without an index.
        for name in (_ROWS, _ENTRIES) if is_copy else (_ENTRIES,):
            replace_file(work / name, folder / name)
        sync(folder)
        replace_file(work / _HEAD, folder / _HEAD)
    rows = folder / _ROWS if is_copy else path
    return RowIndex(path.name, rows, folder / _ENTRIES, num_rows, is_copy)


def _offsets(source: Source, entries: IO[bytes]) -> int:
    offset = num_rows = 0
    with source.open() as file:
        for number, (line, length) in enumerate(bounded_lines(file), start=1):
            # The byte order mark is not part of the first row, so its offset begins behind it.
            start = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
            if line[start:].strip():
                entries.write(_ENTRY.pack(number, offset + start))
                num_rows += 1
            offset += length
    return num_rows


def _copy(source: Source, rows: Path, entries: IO[bytes]) -> int:
    from luthier.ml.data.rows.rows import read_records  # reads Parquet, so it is heavy; JSONL needs none of it

    offset = num_rows = 0
    with rows.open("wb") as file:
        for record in read_records(source):
            raw = record.raw
            if isinstance(record.item, RowProblem):
                raw = json.dumps(str(record.item.reason)).encode()
            entries.write(_ENTRY.pack(record.line, offset))
            offset += file.write((raw or b"") + b"\n")
            num_rows += 1
    return num_rows


def _pieces(file: IO[bytes], offset: int) -> Iterator[bytes]:
    file.seek(offset)
    while piece := file.readline(_PIECE_BYTES):
        yield piece
        if piece.endswith(b"\n"):
            return
    yield b"\n"
