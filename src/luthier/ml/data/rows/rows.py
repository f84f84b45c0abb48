"""Raw rows of a data file, streamed, in any format; an invalid row gives a problem in its place.

`read_records` gives rows together with the bytes they are written by, which repair and split pass through unchanged.
`part_of` takes a share of the rows by a stable hash: shares that begin at the same place contain one another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from luthier.core.dataset import Example, Row
from luthier.core.errors import DataError, RowProblem, library_reason
from luthier.core.import_string import import_string
from luthier.ml.data.files.sequences import selected
from luthier.ml.data.files.source import NAMES, WORKBOOKS, Format, Source
from luthier.ml.data.rows.outputs import json_line
from luthier.ml.data.rows.read_json import JsonLine, export_note, lines_of_jsonl
from luthier.ml.data.text.normalise import content_key

_READERS: Final[dict[Format, str]] = {
    "jsonl": "luthier.ml.data.rows.read_json:read_jsonl",
    "json": "luthier.ml.data.rows.read_json:read_json",
    "csv": "luthier.ml.data.rows.read_table:read_csv",
    "parquet": "luthier.ml.data.files.read_parquet:read_parquet",
    "xlsx": "luthier.ml.data.rows.read_workbook:read_workbook",
    "xls": "luthier.ml.data.rows.read_workbook:read_workbook",
    "ods": "luthier.ml.data.rows.read_workbook:read_workbook",
}
"""The reader of each format, imported when a file of it is read."""


def read_rows(source: Source) -> Iterator[Row | RowProblem]:
    """One Row or RowProblem for each record, in the order of the file.

    Raises:
        DataError: the file as a whole cannot be read: a broken JSON document, a bad CSV header, damaged data.
    """
    read: Callable[[Source], Iterator[Row | RowProblem]] = import_string(_READERS[source.format])
    return read(source)


def read_as(source: Source) -> str:
    """How a file is written, where its format leaves that open: `semicolons, Windows-1252`; else empty.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    if source.format == "csv":
        from luthier.ml.data.files.csv_dialect import csv_dialect

        return csv_dialect(source).in_words()
    if source.format in WORKBOOKS:
        from luthier.ml.data.rows.read_workbook import workbook_notes

        return workbook_notes(source)
    written = "" if source.encoding == "utf-8" else NAMES[source.encoding]
    note = export_note(source) if source.format == "json" else ""
    return ", ".join(filter(None, (written, note)))


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file.

    Of a JSONL file these are the very bytes of the line, else the row as JSON; None where a record of another format
    cannot be read, and of a line that is too long.

    Attributes:
        line: as `Row.line`.
        item: the row, or why there is none.
        raw: the record as one line of JSONL without its end.
    """

    line: int
    item: Row | RowProblem
    raw: bytes | None


def read_records(source: Source, columns: Collection[str] = ()) -> Iterator[Record]:
    """Each record of a file in order, streamed. Blank lines are no records.

    A row with a value that JSON does not have (not a number, raw bytes) comes as a RowProblem.

    Args:
        source: the file.
        columns: what is needed of the rows; empty for all. Where another column holds such a value, `raw` has these
            alone.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    if source.format == "jsonl":
        file = source.name
        for line in lines_of_jsonl(source):
            yield record_of(line, file)
        return
    for item in read_rows(source):
        if isinstance(item, Row):
            yield _written(item, columns)
        else:
            yield Record(item.line, item, None)


def _written(row: Row, columns: Collection[str]) -> Record:
    needed = {name: value for name, value in row.fields.items() if name in columns}
    for fields in (row.fields, needed) if needed else (row.fields,):
        try:
            return Record(row.line, row, json_line(fields))
        except (TypeError, ValueError) as error:
            reason = f"cannot be written as JSON: {library_reason(error)}"
    return Record(row.line, RowProblem(row.file, row.line, "", "", reason), None)


def read_raw_records(source: Source) -> Iterator[tuple[int, bytes | None]]:
    """Line and bytes of each record as `read_records` gives them; lines of JSONL are not parsed.

    Args:
        source: the file.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    if source.format == "jsonl":
        for line in lines_of_jsonl(source):
            yield line.number, line.raw
    else:
        for record in read_records(source):
            yield record.line, record.raw


def record_of(line: JsonLine, file: str) -> Record:
    """A line of JSONL, parsed.

    Args:
        line: of the file.
        file: name of the file, for messages.
    """
    return Record(line.number, line.row(file), line.raw)


def part_of(examples: Sequence[Example], part: tuple[float, float]) -> Sequence[Example]:
    """The examples from share `part[0]` to below `part[1]` in the order of a hash, in the order in which they came.

    The hash is of the group where there is one, else of the normalised content, so equal rows stay together except for
    those at the two ends.

    Args:
        examples: the rows.
        part: first and last share, 0 to 1.

    Raises:
        DataError: the share holds no row.
    """
    order = hash_order(examples)
    first, last = (round(share * len(examples)) for share in part)
    chosen = np.sort(order[first:last])
    if not len(chosen):
        raise DataError(
            f"data.subset {list(part)} of {len(examples):,} training rows holds none",
            expected="a share with at least one row",
            do="widen data.subset",
        )
    return selected(examples, chosen.astype(np.int64))


def hash_order(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """int64 [n], the positions of the examples in the order of a stable hash of their group or content.

    By hash instead of a random draw: the first tenth is a part of the first fifth, also after rows are appended or
    moved.
    """
    digests = bytearray()
    for example in examples:
        digests += _place_digest(example)
    # Big-endian, so that numbers are in the order of the bytes; lexsort's last key is the primary one.
    words = np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 4)
    return np.lexsort(words.T[::-1]).astype(np.int64)


def is_in_fraction(example: Example, fraction: float) -> bool:
    """Whether an example is among the first `fraction` of all possible ones in the order of `hash_order`.

    For rows whose number is not known: each is decided by itself, so about that share of them is chosen.
    """
    # 53 bits: as many as a double holds, so that the number is below 1.
    return (int.from_bytes(_place_digest(example)[:8], "big") >> 11) * 2.0**-53 < fraction


def _place_digest(example: Example) -> bytes:
    """32 bytes, whose order as a number is that of `hash_order`."""
    key = example.group if example.group is not None else content_key(example)
    return hashlib.sha256(f"part\0{key}".encode()).digest()
