"""Rows out of tables: CSV and Excel workbooks (.xlsx).

Of a workbook the one visible sheet with rows is read, values as the spreadsheet shows them; the first row with values
names the columns, or the one below titles that have a cell alone. What would be lost silently is refused: a second
sheet with rows, merged cells, values under no name, formulas whose results were not saved. Columns without a name and
without values are no part of a table.
"""

from __future__ import annotations

import csv
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import IO, Any, Final

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem, library_reason
from luthier.core.system.process_setup import large_csv_cells
from luthier.core.text.counted import counted
from luthier.ml.data.files.bad_field import shorten
from luthier.ml.data.files.cell_text import cell_text
from luthier.ml.data.files.csv_dialect import (
    MAX_TITLES,
    ONE_COLUMN,
    PADDED_COLUMNS,
    TABLE_SHARE,
    CsvDialect,
    are_names,
    csv_dialect,
    records,
    titles_note,
    within,
)
from luthier.ml.data.files.sheet_markup import SheetMarkup, cells_shown, sheet_markup
from luthier.ml.data.files.source import Source
from luthier.ml.data.files.untrusted_input import MAX_LINE_BYTES, bounded_lines, check_archive, too_long
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


def _repeats(names: list[str], values: Sequence[str]) -> bool:
    """Whether a row has the names of the columns as values: of one column alone it may be a value."""
    return len(names) > 1 and [value.strip() for value in values] == names


_REPEATED: Final = (
    "repeats the names of the columns: a second table begins here, or files were joined with their headers; remove the "
    "row, and what does not belong to the first table"
)


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
    if _repeats(header, record):
        return RowProblem(file, number, "", shorten(dialect.delimiter.join(record)), f"{_REPEATED} {where}")
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


_NUM_REMEMBERED: Final = 64
_FIRST_ROWS: Final = 40
_ROW_AT_END: Final = re.compile(r"[0-9]+$")


@dataclass(frozen=True, slots=True)
class _Sheet:
    """Where the rows of a workbook are.

    Attributes:
        title: of the sheet.
        header_row: the row that names the columns, from 1.
        single: titles of other sheets that have a single line, and so no rows.
        hidden: titles of hidden sheets with rows, beside a visible one.
        titles: what is above the names of the columns.
        num_hidden_rows: rows that a filter or a person has hidden; they are read.
        num_hidden_columns: columns likewise.
    """

    title: str
    header_row: int
    single: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    num_hidden_rows: int = 0
    num_hidden_columns: int = 0


def workbook_notes(source: Source) -> str:
    """Which sheet is read, as text: `the sheet 'Answers'`; which others are not, and what a reader may not expect.

    Raises:
        DataError: the workbook is broken, encrypted or unsafe, has no rows, or rows on more than one sheet.
    """
    sheet = _sheet(source)
    others = [
        f"not {', '.join(map(repr, names))}: {why}"
        for names, why in ((sheet.single, "a single line and no rows"), (sheet.hidden, "hidden"))
        if names
    ]
    hidden = [
        counted(num, f"hidden {noun}")
        for num, noun in ((sheet.num_hidden_rows, "row"), (sheet.num_hidden_columns, "column"))
        if num
    ]
    return (
        f"the sheet {sheet.title!r}"
        + (f" ({'; '.join(others)})" if others else "")
        + titles_note("row", sheet.header_row, sheet.titles)
        + (f", with {' and '.join(hidden)}" if hidden else "")
    )


def read_xlsx(source: Source) -> Iterator[Row | RowProblem]:
    """One Row for each row of the sheet with values, by its number there; values are all text, empty ones empty.

    A row with an error such as #N/A is a RowProblem. Hidden rows and columns are read, which `workbook_notes` says.

    Raises:
        DataError: the workbook is broken, encrypted or unsafe, has no rows or rows on more than one sheet, merged
            cells, values under no name, or formulas without saved results.
    """
    found = _sheet(source)
    with _open(source) as book:
        rows = _filled_rows(book[found.title])
        header = next(cells for number, cells in rows if number == found.header_row)
        names = header_names(source.name, _texts(header))
        while names and not names[-1]:
            names.pop()
        for number, cells in rows:
            texts = _texts(cells)
            for place, text in enumerate(texts):
                if text and (place >= len(names) or not names[place]):
                    raise _without_name(source, found, cells[place].coordinate)
            wrong = next((cell for cell in cells if getattr(cell, "data_type", "") == "e"), None)
            if wrong is not None:
                field = names[wrong.column - 1]
                reason = f"is the error of a formula (cell {wrong.coordinate})"
                yield RowProblem(source.name, number, field, str(wrong.value), reason)
                continue
            texts += [""] * (len(names) - len(texts))
            if _repeats(names, texts):
                yield RowProblem(source.name, number, "", shorten(", ".join(texts)), _REPEATED)
                continue
            yield Row(source.name, number, {name: text for name, text in zip(names, texts, strict=False) if name})


def _without_name(source: Source, sheet: _Sheet, cell: str) -> DataError:
    return DataError(
        f"{source.name} has a value in cell {cell}, and row {sheet.header_row} gives its column no name",
        expected="a first row that names every column",
        do="name the column, or remove titles above the names and notes next to the rows",
    )


def _sheet(source: Source) -> _Sheet:
    """The one sheet with rows, cached for the current file."""
    # Inode, size and time are part of the key: finding the sheet reads the whole file, but a changed file must be read
    # again.
    stat = source.path.stat()
    return _find_sheet(source, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=_NUM_REMEMBERED)
def _find_sheet(source: Source, _inode: int, _num_bytes: int, _changed_ns: int) -> _Sheet:
    try:
        # Before openpyxl unpacks anything: a workbook is a ZIP archive, and may be a bomb.
        check_archive(source.path)
    except DataError as error:
        raise DataError(f"{source.name}: {error.came}", expected=error.expected, do=error.do) from error
    with _open(source) as book:
        firsts = {sheet.title: list(islice(_filled_rows(sheet), _FIRST_ROWS)) for sheet in book.worksheets}
        visible = {sheet.title for sheet in book.worksheets if sheet.sheet_state == "visible"}
        filled = {title: first for title, first in firsts.items() if first}
        if not filled:
            raise DataError(f"{source.name} holds no rows", expected="one sheet with rows", do="check what was saved")
        # A note beside the rows, or names of columns with nothing below them: such a sheet has no rows to choose from.
        single = tuple(title for title, first in filled.items() if len(first) == 1)
        if len(single) < len(filled):
            filled = {title: first for title, first in filled.items() if title not in single}
        else:
            single = ()
        # A sheet that nobody sees holds the choices of a column, or sums; beside a visible one it is not what is meant.
        hidden = tuple(title for title in filled if title not in visible)
        if len(hidden) < len(filled):
            filled = {title: first for title, first in filled.items() if title in visible}
        else:
            hidden = ()
        if len(filled) > 1:
            raise DataError(
                f"{source.name} has rows on {len(filled)} sheets: {', '.join(map(repr, filled))}",
                expected="one sheet with rows",
                do="save the sheet to be read as a separate file: as CSV UTF-8, or moved to a new workbook",
            )
        title, first = next(iter(filled.items()))
        num_titles = _num_titles(first)
        titles = tuple(" ".join(filter(None, _texts(cells))) for _, cells in first[:num_titles])
        header_row = first[num_titles][0]
        # Private, but the only way from a title to its part in the archive; _check_cells reads the raw markup.
        part = str(book[title]._worksheet_path)
    markup = _check_cells(source, title, part, header_row)
    return _Sheet(title, header_row, single, hidden, titles, markup.num_hidden_rows, markup.num_hidden_columns)


def _num_titles(first: Sequence[tuple[int, list[Any]]]) -> int:
    """How many of the first filled rows of a sheet are titles above the names of its columns.

    Titles have one cell each. A blank row is below them, or names of three columns or more; nearly all rows that follow
    have several values. All else begins with the names.
    """
    counts = [sum(cell.value not in (None, "") for cell in cells) for _, cells in first]
    num = next((place for place, count in enumerate(counts) if count > 1), 0)
    if not 0 < num <= MAX_TITLES or len(first) < num + 2:
        return 0
    values = [cell.value for cell in first[num][1] if cell.value not in (None, "")]
    if not all(isinstance(value, str) for value in values) or not are_names([value.strip() for value in values]):
        return 0
    has_gap = first[num][0] - first[num - 1][0] > 1
    if not has_gap and len(values) < PADDED_COLUMNS:
        return 0
    below = counts[num + 1 :]
    return num if sum(count > 1 for count in below) >= TABLE_SHARE * len(below) else 0


@contextmanager
def _open(source: Source) -> Iterator[Any]:
    """The workbook, row by row and without formulas. What openpyxl raises becomes a DataError."""
    import openpyxl  # type: ignore[import-untyped] # here, since reading text alone needs none of it
    from openpyxl.utils.exceptions import InvalidFileException  # type: ignore[import-untyped]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and validations, which are not read
            # data_only gives saved results instead of formulas; read_only streams rows.
            book = openpyxl.load_workbook(source.path, read_only=True, data_only=True, rich_text=False)
            try:
                yield book
            finally:
                book.close()
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, TypeError, SyntaxError, OSError) as error:
        raise DataError(
            f"{source.name} cannot be read as a workbook: {library_reason(error)}",
            expected="a whole .xlsx file",
            do="open it in a spreadsheet program and save it again",
        ) from error


def _filled_rows(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """Each row with a value: its number, and its cells up to the last one with a value."""
    sheet.reset_dimensions()  # a wrong size in the file would cut rows off
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        last = max((place for place, cell in enumerate(cells) if cell.value not in (None, "")), default=-1)
        if last >= 0:
            yield number, list(cells[: last + 1])


def _texts(cells: list[Any]) -> list[str]:
    return [cell_text(cell.value, getattr(cell, "number_format", None) or "General") for cell in cells]


def _check_cells(source: Source, title: str, part: str, header_row: int) -> SheetMarkup:
    """The markup of the sheet.

    Raises DataError for merged cells below the titles, and for formulas without a saved result.
    """
    found = sheet_markup(source.path, part)
    last_rows = {cells: _ROW_AT_END.search(cells) for cells in found.merged}
    merged = [cells for cells, last in last_rows.items() if last is None or int(last[0]) >= header_row]
    for cells, what, do in (
        (merged, "merged cells", "unmerge them (Home, Merge & Center) and give each row its own values"),
        (found.unsaved, "formulas without saved results", "open it in a spreadsheet program and save it again"),
    ):
        if cells:
            shown = cells_shown(cells)
            raise DataError(
                f"{source.name} has {what} on the sheet {title!r}: {shown}",
                expected="one value in each cell",
                do=do,
            )
    return found
