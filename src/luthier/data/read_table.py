"""Rows out of CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.core.library_errors import library_reason
from luthier.data.bad_field import shorten
from luthier.data.bounded_lines import bounded_lines, too_long
from luthier.data.read_json import nul_at, undecodable
from luthier.data.source import Source

_MAX_CELL_CHARACTERS = 2**31 - 1
_PARQUET_BATCH_ROWS = 1_024


class _TextLines:
    """Lines of a CSV file as text. A line that cannot be decoded is kept for the record it belongs to."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._number = self._offset = 0
        self.problems: list[RowProblem] = []

    def __iter__(self) -> Iterator[str]:
        for line, length in bounded_lines(self._file):
            self._number += 1
            if length > len(line):
                raise DataError(
                    f"line {self._number} of {self._name} {too_long(length)}",
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
                text = line.decode("utf-8", "replace")
            self._offset += len(line)
            yield text


def read_csv(source: Source) -> Iterator[Row | RowProblem]:
    """One Row or RowProblem for each record (RFC 4180, comma, first record is the header); values are all text."""
    with source.open() as file, _large_cells():
        lines = _TextLines(file, source.name)
        records = csv.reader(iter(lines), strict=True)
        header = _header(source.name, next(_records(records), []))
        if lines.problems:
            raise DataError(
                f"the header of {source.name} is not UTF-8 text",
                expected="UTF-8",
                do="convert the file with iconv",
                problems=lines.problems,
            )
        number = 0
        for record in _records(records):
            if not record and len(header) > 1:
                continue  # a blank line
            number += 1
            problems, lines.problems = lines.problems, []
            where = f"(record that ends on line {records.line_num} of the file)"
            if problems:
                first = problems[0]
                reason = f"{first.reason} (line {first.line} of the file)"
                yield RowProblem(source.name, number, first.field, first.value, reason, first.kind)
            elif isinstance(record, csv.Error):
                yield RowProblem(source.name, number, "", "", f"is not CSV: {record} {where}")
            elif len(record) != len(header):
                reason = f"has {len(record)} values where the header has {len(header)} {where}"
                yield RowProblem(source.name, number, "", shorten(",".join(record)), reason)
            else:
                yield Row(source.name, number, dict(zip(header, record, strict=True)))


def _records(reader: Any) -> Iterator[Any]:
    """Each record, or the csv.Error in its place: the reader can go on after an error."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _header(file: str, header: Any) -> list[str]:
    if isinstance(header, csv.Error):
        raise DataError(f"the header of {file} is not CSV: {header}", expected="column names", do="repair line 1")
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        came = f"the column {twice[0]!r} twice" if twice[0] else "more than one column without a name"
        raise DataError(
            f"the header of {file} has {came}: {shorten(','.join(names))}",
            expected="a different name for each column",
            do="rename or remove columns",
        )
    return names


@contextmanager
def _large_cells() -> Iterator[None]:
    """Lift the csv module's limit of 128 KiB a cell while a file is read; the limit is one for the whole process."""
    before = csv.field_size_limit(_MAX_CELL_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_parquet(source: Source) -> Iterator[Row | RowProblem]:
    """One Row for each record, read in batches.

    Arrow fills fields that a nested object lacks with null, so a null inside a nested value is read as absent.
    """
    import pyarrow as pa  # here, since who reads text alone needs none of its memory

    try:
        with _parquet_file(source) as file:
            names = file.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise DataError(
                    f"{source.name} has the column {twice[0]!r} twice",
                    expected="a different name for each column",
                    do="rename or remove columns",
                )
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(source.name, number, {key: _without_nulls(value) for key, value in fields.items()})
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{source.name} is damaged: {library_reason(error)}",
            expected="a whole Parquet file",
            do="copy or write the file again",
        ) from error


@contextmanager
def _parquet_file(source: Source) -> Iterator[Any]:
    import pyarrow.parquet as pq

    if source.is_gzip:
        with source.open() as packed:
            data = packed.read()
        yield pq.ParquetFile(io.BytesIO(data))
    else:
        with source.path.open("rb") as file:
            yield pq.ParquetFile(file)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
