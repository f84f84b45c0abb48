"""Records of a data file together with the bytes they are written by: what repair and split pass through unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.core.library_errors import library_reason
from luthier.ml.data.files.bounded_lines import bounded_lines
from luthier.ml.data.files.source import Source
from luthier.ml.data.rows.rows import read_rows
from luthier.ml.data.rows.write_rows import json_line

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
