"""Rows out of workbooks: Excel (.xlsx, .xlsm, .xls) and OpenDocument (.ods).

The one visible sheet with rows is read, values as the spreadsheet shows them; the first row with values names the
columns, or the one below titles that have a cell alone. What would be lost silently is refused: a second sheet with
rows, merged cells, values under no name, formulas whose results were not saved. Columns without a name and without
values are no part of a table.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem, library_reason
from luthier.core.import_string import import_string
from luthier.core.text.counted import counted
from luthier.ml.data.files.bad_field import shorten
from luthier.ml.data.files.cell_text import cell_text
from luthier.ml.data.files.csv_dialect import (
    MAX_TITLES,
    PADDED_COLUMNS,
    TABLE_SHARE,
    are_names,
    titles_note,
)
from luthier.ml.data.files.sheet_markup import SheetMarkup, cells_shown, sheet_markup
from luthier.ml.data.files.sheets import Sheet
from luthier.ml.data.files.source import Source
from luthier.ml.data.files.untrusted_input import check_archive
from luthier.ml.data.rows.read_table import REPEATED_HEADER, header_names, repeats_header

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


def read_workbook(source: Source) -> Iterator[Row | RowProblem]:
    """One Row for each row of the sheet with values, by its number there; values are all text, empty ones empty.

    A row with an error such as #N/A is a RowProblem. Hidden rows and columns are read, which `workbook_notes` says.

    Raises:
        DataError: the workbook is broken, encrypted or unsafe, has no rows or rows on more than one sheet, merged
            cells, values under no name, or formulas without saved results.
    """
    found = _sheet(source)
    with _open(source) as sheets:
        rows = _filled_rows(next(sheet for sheet in sheets if sheet.title == found.title))
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
            if repeats_header(names, texts):
                yield RowProblem(source.name, number, "", shorten(", ".join(texts)), REPEATED_HEADER)
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
    if source.format != "xls":
        with _named(source):
            # Before anything is unpacked: a workbook is a ZIP archive, and may be a bomb.
            check_archive(source.path)
    with _open(source) as sheets:
        firsts = {sheet.title: list(islice(_filled_rows(sheet), _FIRST_ROWS)) for sheet in sheets}
        visible = {sheet.title for sheet in sheets if sheet.sheet_state == "visible"}
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
        read = next(sheet for sheet in sheets if sheet.title == title)
        # Private, but the only way from a sheet of openpyxl to its part in the archive.
        markup = read.markup if isinstance(read, Sheet) else sheet_markup(source.path, str(read._worksheet_path))
    _check_cells(source, title, markup, header_row)
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
def _named(source: Source) -> Iterator[None]:
    """Name the file in errors about it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source.name}: {error.came}", expected=error.expected, do=error.do) from error


_READERS: Final[dict[str, str]] = {
    "xls": "luthier.ml.data.files.xls:read_xls",
    "ods": "luthier.ml.data.files.ods:read_ods",
}
"""What reads a workbook of a format that openpyxl does not."""


@contextmanager
def _open(source: Source) -> Iterator[list[Any]]:
    """The sheets with cells, those of openpyxl row by row; without formulas.

    Raises DataError where the workbook cannot be read.
    """
    if source.format in _READERS:
        with _named(source):
            sheets: list[Any] = import_string(_READERS[source.format])(source.path)
        yield sheets
        return
    import openpyxl  # type: ignore[import-untyped] # here, since reading text alone needs none of it
    from openpyxl.utils.exceptions import InvalidFileException  # type: ignore[import-untyped]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and validations, which are not read
            # data_only gives saved results instead of formulas; read_only streams rows.
            book = openpyxl.load_workbook(source.path, read_only=True, data_only=True, rich_text=False)
            try:
                yield book.worksheets
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
    if not isinstance(sheet, Sheet):
        sheet.reset_dimensions()  # a wrong size in the file would cut rows off
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        last = max((place for place, cell in enumerate(cells) if cell.value not in (None, "")), default=-1)
        if last >= 0:
            yield number, list(cells[: last + 1])


def _texts(cells: list[Any]) -> list[str]:
    return [cell_text(cell.value, getattr(cell, "number_format", None) or "General") for cell in cells]


def _check_cells(source: Source, title: str, found: SheetMarkup, header_row: int) -> None:
    """Raise DataError for merged cells below the titles, and for formulas without a saved result."""
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
