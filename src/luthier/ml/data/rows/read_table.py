"""Rows out of CSV files, whose encoding and delimiter are found in the file itself."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.core.system.process_setup import large_csv_cells
from luthier.core.text.counted import counted
from luthier.ml.data.files.bad_field import shorten
from luthier.ml.data.files.csv_dialect import (
    ONE_COLUMN,
    CsvDialect,
    csv_dialect,
    records,
    within,
)
from luthier.ml.data.files.source import Source
from luthier.ml.data.files.untrusted_input import MAX_LINE_BYTES, bounded_lines, too_long
from luthier.ml.data.rows.read_json import nul_at, undecodable


class _TextLines:
    """Lines of a CSV file as text. A line that cannot be decoded is kept for the record it belongs to."""

    def __init__(self, file: IO[bytes], name: str, num_lines_before: int) -> None:
        self._file, self._name, self._num_before = file, name, num_lines_before
        self._number = self._offset = 0
        self.record_bytes = 0
        self.problems: list[RowProblem] = []

    def last_line(self, reader: Any) -> int:
        """The line of the file on which the record ends that a reader of these lines has read last."""
        return int(reader.line_num) + self._num_before

    def __iter__(self) -> Iterator[str]:
        for line, length in bounded_lines(self._file):
            self._number += 1
            if self._number <= self._num_before:
                self._offset += length
                continue
            if length > len(line):
                raise DataError(
                    f"line {self._number} of {self._name} {too_long(length)}",
                    expected="CSV records of a usual size",
                    do="check for a quote that is never closed, or write the file as JSONL or Parquet",
                )
            self.record_bytes += length
            if self.record_bytes > MAX_LINE_BYTES:
                raise DataError(
                    f"the record of {self._name} that continues to line {self._number} {too_long(self.record_bytes)}",
                    expected="CSV records of a usual size",
                    do="check for a quote that is never closed, or write the file as JSONL or Parquet",
                )
            if self._number == 1:
                self._offset = len(line) - len(line.removeprefix(b"\xef\xbb\xbf"))
                line = line.removeprefix(b"\xef\xbb\xbf")
            if 0 in line:
                reason = nul_at(self._offset + line.index(0))
                self.problems.append(RowProblem(self._name, self._number, "", "", reason, "encoding"))
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                self.problems.append(undecodable(self._name, self._number, line, error.start, self._offset))
                # The record continues with this text, so that the csv reader keeps its place; the row itself becomes a
                # problem.
                text = line.decode("utf-8", "replace")
            self._offset += len(line)
            yield text


def read_csv(source: Source) -> Iterator[Row | RowProblem]:
    """One Row or RowProblem for each record (RFC 4180, the first record is the header); values are all text.

    Encoding and delimiter are found in the file itself (`csv_dialect`), and titles above the header. Blank lines, and
    lines of delimiters alone, as spreadsheets write empty rows, are no records; in a file of one column, where a blank
    line could be an empty value, only those at the end are not. Of several columns without a name a row has none, and a
    value there is a problem.

    Raises:
        DataError: the header is not UTF-8 text.
    """
    dialect = csv_dialect(source)
    with source.open() as raw, large_csv_cells():
        file = dialect.open(raw, source.name)
        lines = _TextLines(file, source.name, dialect.num_lines_before)
        reader = csv.reader(iter(lines), delimiter=dialect.delimiter, strict=True)
        # strict=True above turns a quote inside an unquoted value into an error instead of a guess.
        found = _in_columns(records(reader), dialect)
        header = header_names(source.name, next((one for one in found if one and not _is_empty(one)), []))
        if lines.problems:
            raise DataError(
                f"the header of {source.name} is not UTF-8 text",
                expected="UTF-8",
                do="convert the file with iconv",
                problems=lines.problems,
            )
        number, num_blank = 0, 0
        for record in found:
            lines.record_bytes = 0
            if not record:  # a blank line
                # Blank lines at the end are dropped: they are reported only once another record follows.
                num_blank += len(header) == 1
                continue
            if len(header) > 1 and _is_blank(record):
                continue
            for _ in range(num_blank):
                number += 1
                reason = f"has no value: a blank line before line {lines.last_line(reader)} of the file"
                yield RowProblem(source.name, number, "", "", reason)
            num_blank = 0
            number += 1
            problems, lines.problems = lines.problems, []
            yield _row(source.name, number, header, record, problems, dialect, lines.last_line(reader))


def _in_columns(found: Iterator[Any], dialect: CsvDialect) -> Iterator[Any]:
    """The records; of a file of one column, with what the placeholder for a delimiter has split joined again."""
    if dialect.delimiter != ONE_COLUMN:
        yield from found
        return
    for record in found:
        yield [ONE_COLUMN.join(record)] if isinstance(record, list) and len(record) > 1 else record


def _is_empty(record: Any) -> bool:
    """Whether a record has no value, as spreadsheets write blank rows above a table."""
    return isinstance(record, list) and not any(record)


def _is_blank(record: Any) -> bool:
    """Whether a record has delimiters and no value, as a spreadsheet writes an empty row (`;;;`)."""
    return isinstance(record, list) and len(record) > 1 and not any(value.strip() for value in record)


def repeats_header(names: list[str], values: Sequence[str]) -> bool:
    """Whether a row has the names of the columns as values: of one column alone it may be a value."""
    return len(names) > 1 and [value.strip() for value in values] == names


REPEATED_HEADER: Final = (
    "repeats the names of the columns: a second table begins here, or files were joined with their headers; remove the "
    "row, and what does not belong to the first table"
)
"""Why a row with the names of the columns as its values is a problem."""


def _row(
    file: str,
    number: int,
    header: list[str],
    record: Any,
    problems: list[RowProblem],
    dialect: CsvDialect,
    last_line: int,
) -> Row | RowProblem:
    where = f"(record that ends on line {last_line} of the file)"
    if problems:
        first = problems[0]
        reason = f"{first.reason} (line {first.line} of the file)"
        return RowProblem(file, number, first.field, first.value, reason, first.kind)
    if isinstance(record, csv.Error):
        return RowProblem(file, number, "", "", f"is not CSV: {record} {where}")
    record = within(record, len(header))
    if len(record) != len(header):
        by = "" if dialect.delimiter == "," else f", separated by {dialect.separated}"
        reason = f"has {counted(len(record), 'value')} where the header has {len(header)}{by} {where}"
        return RowProblem(file, number, "", shorten(dialect.delimiter.join(record)), reason)
    if repeats_header(header, record):
        return RowProblem(file, number, "", shorten(dialect.delimiter.join(record)), f"{REPEATED_HEADER} {where}")
    if header.count("") > 1:
        for place, (name, value) in enumerate(zip(header, record, strict=True), start=1):
            if value and not name:
                reason = f"has a value in column {place}, to which the header gives no name {where}"
                return RowProblem(file, number, "", shorten(value), reason)
        return Row(file, number, {name: value for name, value in zip(header, record, strict=True) if name})
    return Row(file, number, dict(zip(header, record, strict=True)))


def header_names(file: str, header: Any) -> list[str]:
    """The names of columns without outer spaces; several may have none.

    Raises:
        DataError: a csv.Error and for a name that occurs twice.
    """
    if isinstance(header, csv.Error):
        raise DataError(f"the header of {file} is not CSV: {header}", expected="column names", do="repair line 1")
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(
            f"the header of {file} has the column {twice[0]!r} twice: {shorten(','.join(names))}",
            expected="a different name for each column",
            do="rename or remove columns",
        )
    return names
