"""Records of a data file together with the bytes they are written by: what repair and split pass through unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Any

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.core.library_errors import library_reason
from luthier.ml.data.files.bad_field import name_of_type
from luthier.ml.data.files.bounded_lines import bounded_lines
from luthier.ml.data.files.source import Source
from luthier.ml.data.rows.rows import read_rows

_BOM = b"\xef\xbb\xbf"


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


def read_records(source: Source) -> Iterator[Record]:
    """Each record of a file in order, streamed. Blank lines are no records.

    A row with a value that JSON does not have (not a number, raw bytes) comes as a RowProblem.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    if source.format == "jsonl":
        yield from _lines(source)
        return
    for item in read_rows(source):
        if isinstance(item, Row):
            try:
                yield Record(item.line, item, json_line(item.fields))
            except (TypeError, ValueError) as error:
                problem = RowProblem(
                    source.name, item.line, "", "", f"cannot be written as JSON: {library_reason(error)}"
                )
                yield Record(item.line, problem, None)
        else:
            yield Record(item.line, item, None)


def json_line(fields: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON without its end: UTF-8, fields in their order; dates and times as ISO 8601 texts.

    Raises:
        TypeError: a value of a type that JSON does not have.
        ValueError: a number that is infinite or not a number.
    """
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_iso)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair can only be written as an escape
        return json.dumps(fields, allow_nan=False, default=_iso).encode()


def _iso(value: Any) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"{name_of_type(value)} ({type(value).__name__}) is no JSON value")


def _lines(source: Source) -> Iterator[Record]:
    with source.open() as file:
        lines = enumerate(bounded_lines(file), start=1)
        for item in read_rows(source):
            number, (line, length) = next(lines)
            # The file is read twice side by side: read_rows skips blank lines, so this pass catches up with its line
            # numbers.
            while number < item.line:
                number, (line, length) = next(lines)
            body = line.removeprefix(_BOM) if number == 1 else line
            yield Record(number, item, body.rstrip(b"\r\n") if length == len(line) else None)
