"""Workbooks of Excel 97 to 2003 (.xls), by xlrd: values with their formats, errors, and what is merged or hidden."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any, Final

import xlrd

from luthier.core.errors import DataError, library_reason
from luthier.ml.data.files.sheet_markup import SheetMarkup
from luthier.ml.data.files.sheets import Cell, Sheet, cell_range

_DAMAGED: Final = (
    *(AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, OverflowError, RecursionError),
    *(TypeError, ValueError, ZeroDivisionError, struct.error, xlrd.compdoc.CompDocError, xlrd.formula.FormulaError),
)
"""What xlrd raises for damaged files is not one class."""


def read_xls(path: Path) -> list[Sheet]:
    """The sheets with cells, in the order of the workbook; of a formula the value last computed is read.

    Raises:
        DataError: the file is no such workbook, damaged, or protected by a password.
    """
    # Its messages about damaged files go nowhere instead of to the output.
    try:
        book = xlrd.open_workbook(path, formatting_info=True, logfile=io.StringIO())
        return [_sheet(book, sheet) for sheet in book.sheets()]
    except xlrd.XLRDError as error:
        if "encrypted" in str(error):
            raise DataError(
                "it is protected by a password",
                expected="a workbook without password",
                do="save it without a password",
            ) from error
        raise _damaged(error) from error
    except _DAMAGED as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> DataError:
    return DataError(
        f"it cannot be read as a workbook: {library_reason(error)}",
        expected="a whole workbook of Excel 97 to 2003 (.xls)",
        do="open it in a spreadsheet program and save it as .xlsx",
    )


def _sheet(book: Any, sheet: Any) -> Sheet:
    merged = frozenset(
        # Last row and column of xlrd are behind the range; its first are from 0.
        cell_range(first + 1, left + 1, last, right)
        for first, last, left, right in sheet.merged_cells
    )
    hidden_columns = sum(info.hidden for column, info in sheet.colinfo_map.items() if column < sheet.ncols)
    hidden_rows = sum(bool(info.hidden) for row, info in sheet.rowinfo_map.items() if row < sheet.nrows)
    return Sheet(
        title=sheet.name,
        sheet_state="hidden" if sheet.visibility else "visible",
        rows=[list(_cells(book, sheet, row)) for row in range(sheet.nrows)],
        markup=SheetMarkup(merged, frozenset(), hidden_rows, hidden_columns),
        num_comments=len(sheet.cell_note_map),
    )


def _cells(book: Any, sheet: Any, row: int) -> Iterator[Cell]:
    for column in range(sheet.row_len(row)):
        cell = sheet.cell(row, column)
        style = book.format_map.get(book.xf_list[cell.xf_index].format_key) if cell.xf_index is not None else None
        shown_as = style.format_str if style is not None else "General"
        kind = "e" if cell.ctype == xlrd.XL_CELL_ERROR else "n"
        yield Cell(_value(cell, book.datemode), shown_as, kind, row + 1, column + 1)


def _value(cell: Any, datemode: int) -> Any:
    if cell.ctype in (xlrd.XL_CELL_EMPTY, xlrd.XL_CELL_BLANK):
        return None
    if cell.ctype == xlrd.XL_CELL_BOOLEAN:
        return bool(cell.value)
    if cell.ctype == xlrd.XL_CELL_ERROR:
        return xlrd.error_text_from_code.get(cell.value, "#ERROR")
    if cell.ctype == xlrd.XL_CELL_DATE:
        return _date(cell.value, datemode)
    return cell.value


def _date(value: float, datemode: int) -> datetime | time | float:
    """A number of days as a date, a time of day below one; the number where it is none (before March 1900)."""
    if 0 <= value < 1:
        return (datetime.min + timedelta(seconds=round(value * 86_400))).time()
    try:
        found: datetime = xlrd.xldate.xldate_as_datetime(value, datemode)
    except (xlrd.xldate.XLDateError, OverflowError, ValueError):
        return value
    # Fractions of a day are not exact: 14:30 is 14:29:59.999997.
    return (found + timedelta(microseconds=500_000)).replace(microsecond=0)
