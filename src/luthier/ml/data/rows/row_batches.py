"""Some thousand consecutive records of a file as one piece of work, for workers that have not the file.

Lines of JSONL are sent as bytes and parsed where the work is done; records of other formats are read first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.ml.data.files.source import Source
from luthier.ml.data.rows.read_json import JsonLine, lines_of_jsonl
from luthier.ml.data.rows.rows import read_rows

BATCH_RECORDS: Final = 5_000
_BATCH_BYTES: Final = 8 << 20
_VALUE_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Consecutive records.

    Attributes:
        file: name of the file, for messages.
        records: lines of JSONL, or what was read of another format.
    """

    file: str
    records: tuple[JsonLine | Row | RowProblem, ...]

    def rows(self) -> Iterator[Row | RowProblem]:
        """What `rows.read_rows` gives for these records."""
        for record in self.records:
            yield record.row(self.file) if isinstance(record, JsonLine) else record


def row_batches(source: Source) -> Iterator[RowBatch]:
    """All records of a file in order, in batches of at most 5,000 records or some 8 MiB.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    records: list[JsonLine | Row | RowProblem] = []
    num_bytes = 0
    for record in lines_of_jsonl(source) if source.format == "jsonl" else read_rows(source):
        records.append(record)
        num_bytes += len(record.body) if isinstance(record, JsonLine) else _size_of(record)
        if len(records) >= BATCH_RECORDS or num_bytes >= _BATCH_BYTES:
            yield RowBatch(source.name, tuple(records))
            records, num_bytes = [], 0
    if records:
        yield RowBatch(source.name, tuple(records))


def _size_of(record: Row | RowProblem) -> int:
    return _size_of_value(record.fields) if isinstance(record, Row) else len(record.value)


def _size_of_value(value: Any) -> int:
    """About the bytes of a JSON value in memory."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(_VALUE_BYTES + _size_of_value(inner) for inner in value.values())
    if isinstance(value, list):
        return sum(_VALUE_BYTES + _size_of_value(inner) for inner in value)
    return _VALUE_BYTES
