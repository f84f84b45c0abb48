"""The records of one shard from any place on, without what comes before being parsed.

A place is a byte of JSONL and a row of all other formats: of Parquet, row groups before it are not decoded; of CSV, a
workbook or a JSON document, and of anything packed by gzip, the shard is read from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.files.read_parquet import read_parquet
from luthier.ml.data.files.source import Source
from luthier.ml.data.rows.read_json import JsonLine, lines_of_jsonl
from luthier.ml.data.rows.rows import read_rows

_OBJECT_BYTES: Final = 200
"""Of a record in memory beside its content."""
_VALUE_BYTES: Final = 56


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record that is not parsed yet, or not mapped.

    Attributes:
        source: place of its source in the list of sources.
        file: name of its shard, for messages.
        content: a line of JSONL, or what was read of another format.
    """

    source: int
    file: str
    content: JsonLine | Row | RowProblem

    def row(self) -> Row | RowProblem:
        """The row, or what is wrong with it."""
        return self.content.row(self.file) if isinstance(self.content, JsonLine) else self.content

    @property
    def memory_bytes(self) -> int:
        """About what it takes in memory."""
        if isinstance(self.content, JsonLine):
            return _OBJECT_BYTES + len(self.content.body)
        return _OBJECT_BYTES + (_size_of(self.content.fields) if isinstance(self.content, Row) else 0)


def _size_of(value: Any) -> int:
    if isinstance(value, str | bytes):
        return _VALUE_BYTES + len(value)
    if isinstance(value, dict):
        return _VALUE_BYTES + sum(2 * _VALUE_BYTES + _size_of(inner) for inner in value.values())
    if isinstance(value, list):
        return _VALUE_BYTES + sum(_size_of(inner) for inner in value)
    return _VALUE_BYTES


class Place(NamedTuple):
    """A place in a shard: what is before it.

    Attributes:
        row: records.
        line: lines, blank ones included; of JSONL alone.
        offset: bytes of the unpacked shard; of JSONL alone.
    """

    row: int = 0
    line: int = 0
    offset: int = 0


def records_from(source: Source, place: Place, number: int) -> Iterator[tuple[RawRecord, Place]]:
    """The records from a place of the shard on, each with the place behind it.

    Args:
        source: the shard.
        place: where to begin.
        number: of its source, for the records.

    Raises:
        DataError: the shard as a whole cannot be read, or ends before the place.
    """
    row = place.row
    if source.format != "jsonl":
        for content in _rows_from(source, row):
            row += 1
            yield RawRecord(number, source.name, content), Place(row)
        return
    for line in lines_of_jsonl(source, num_lines=place.line, offset=place.offset):
        row += 1
        # The offset of a line is that of its body: a byte order mark before it belongs to the first line.
        start = 0 if line.number == 1 else line.offset
        yield RawRecord(number, source.name, line), Place(row, line.number, start + line.length)


def _rows_from(source: Source, num_skipped: int) -> Iterator[Row | RowProblem]:
    if source.format == "parquet":
        yield from read_parquet(source, num_skipped)
        return
    rows = read_rows(source)
    skipped = sum(1 for _ in islice(rows, num_skipped))
    if skipped < num_skipped:
        raise DataError(
            f"{source.name} has {skipped:,} rows, and the run has read {num_skipped:,} of it",
            expected="the file as it was when the run began",
            do="restore the file, or start a new run",
        )
    yield from rows
