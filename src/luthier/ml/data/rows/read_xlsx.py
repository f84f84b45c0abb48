"""Rows out of a workbook (.xlsx): of its one sheet with rows, values as the spreadsheet shows them.

The first row with values names the columns. What would be lost silently is refused: a second sheet with rows,
merged cells, values under no name, formulas whose results were not saved.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.core.library_errors import library_reason
from luthier.ml.data.files.archive_safety import check_archive
from luthier.ml.data.files.cell_text import cell_text
from luthier.ml.data.files.source import Source
from luthier.ml.data.rows.read_table import header_names

_BLOCK_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 1 << 16
_MERGED: Final = re.compile(rb"<(?:\w+:)?mergeCell\s[^>]*?ref=\"([A-Z0-9:]+)\"")
# A formula whose cell holds no value: no <v>, or an empty one.
_UNSAVED: Final = re.compile(
    rb"<(?:\w+:)?c\s[^>]*?r=\"([A-Z]+[0-9]+)\"[^>]*>\s*<(?:\w+:)?f(?:\s[^>]*)?(?:/>|>[^<]*</(?:\w+:)?f>)"
    rb"\s*(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v></(?:\w+:)?v>)?\s*</(?:\w+:)?c>"
)
_NUM_SHOWN: Final = 3
_NUM_REMEMBERED: Final = 64


@dataclass(frozen=True, slots=True)
class _Sheet:
    """Where the rows of a workbook are.

    Attributes:
        title: of the sheet.
        header_row: the row that names the columns, from 1.
        num_sheets: of the book.
    """

    title: str
    header_row: int
    num_sheets: int


def workbook_notes(source: Source) -> str:
    """Which sheet is read, as text: `the sheet 'Answers'`.

    Raises:
        DataError: the workbook is broken, encrypted or unsafe, has no rows, or rows on more than one sheet.
    """
    return f"the sheet {_sheet(source).title!r}"


def read_xlsx(source: Source) -> Iterator[Row | RowProblem]:
    """One Row for each row of the sheet with values, by its number there; values are all text, empty ones empty.

    A row with an error such as #N/A is a RowProblem.

    Raises:
        DataError: the workbook is broken, encrypted or unsafe, has no rows or rows on more than one sheet, merged
            cells, values under no name, or formulas without saved results.
    """
    found = _sheet(source)
    with _open(source) as book:
        rows = _filled_rows(book[found.title])
        _, header = next(rows)
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
            yield Row(source.name, number, {name: text for name, text in zip(names, texts, strict=False) if name})


def _without_name(source: Source, sheet: _Sheet, cell: str) -> DataError:
    return DataError(
        f"{source.name} has a value in cell {cell}, and row {sheet.header_row} gives its column no name",
        expected="a first row that names every column",
        do="name the column, or remove titles above the names and notes beside the rows",
    )


def _sheet(source: Source) -> _Sheet:
    """The one sheet with rows, remembered for the file as it is now."""
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
        firsts = {sheet.title: next(_filled_rows(sheet), None) for sheet in book.worksheets}
        filled = {title: first for title, first in firsts.items() if first is not None}
        if not filled:
            raise DataError(f"{source.name} holds no rows", expected="one sheet with rows", do="check what was saved")
        if len(filled) > 1:
            raise DataError(
                f"{source.name} has rows on {len(filled)} sheets: {', '.join(map(repr, filled))}",
                expected="one sheet with rows",
                do="save the sheet to be read as a file of its own: as CSV UTF-8, or moved to a new workbook",
            )
        (title, (header_row, _)) = next(iter(filled.items()))
        # Private, but the only way from a title to its part in the archive; _check_cells reads the raw markup.
        part = str(book[title]._worksheet_path)
        num_sheets = len(book.worksheets)
    _check_cells(source, title, part)
    return _Sheet(title, header_row, num_sheets)


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


def _check_cells(source: Source, title: str, part: str) -> None:
    """Raise DataError for merged cells, and for formulas without a saved result; read from the sheet's own markup."""
    merged, unsaved = set(), set()
    tail = b""
    with zipfile.ZipFile(source.path) as archive, archive.open(part.lstrip("/")) as file:
        while block := file.read(_BLOCK_BYTES):
            window = tail + block
            merged.update(_MERGED.findall(window))
            unsaved.update(_UNSAVED.findall(window))
            # An overlap, so that a match across two blocks is found; sets remove what is found twice.
            tail = window[-_TAIL_BYTES:]
    for cells, what, do in (
        (merged, "merged cells", "unmerge them (Home, Merge & Center) and give each row its own values"),
        (unsaved, "formulas without saved results", "open it in a spreadsheet program and save it again"),
    ):
        if cells:
            shown = ", ".join(one.decode() for one in sorted(cells, key=lambda one: (len(one), one))[:_NUM_SHOWN])
            more = f" and {len(cells) - _NUM_SHOWN:,} more" if len(cells) > _NUM_SHOWN else ""
            raise DataError(
                f"{source.name} has {what} on the sheet {title!r}: {shown}{more}",
                expected="one value in each cell",
                do=do,
            )
