"""Sheets of workbooks that openpyxl does not read, with the few names of its cells and sheets that our readers use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.ml.data.files.sheet_markup import SheetMarkup

MAX_CELLS: Final = 50_000_000
"""Of a workbook that is read into memory: some 5 GB."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a sheet.

    Attributes:
        value: a text, a number, a date or time, True or False; None where it is empty.
        number_format: how the workbook shows a number, as in `cell_text`.
        data_type: `e` for the error of a formula, else `n`.
        row: from 1.
        column: from 1.
    """

    value: Any
    number_format: str
    data_type: str
    row: int
    column: int

    @property
    def coordinate(self) -> str:
        """Such as `B7`."""
        return f"{column_letters(self.column)}{self.row}"


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sheet.

    Attributes:
        title: its name.
        sheet_state: `visible` or `hidden`.
        rows: cells of each row, from the first row and column on.
        markup: what is merged and hidden.
        num_comments: notes on its cells, which are not read.
    """

    title: str
    sheet_state: str
    rows: Sequence[Sequence[Cell]]
    markup: SheetMarkup
    num_comments: int = 0

    def iter_rows(self) -> Iterator[Sequence[Cell]]:
        """Its rows, empty ones too."""
        return iter(self.rows)


def column_letters(column: int) -> str:
    """The name of a column: `A` of 1, `AA` of 27."""
    letters = ""
    while column > 0:
        column, rest = divmod(column - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def cell_range(first_row: int, first_column: int, last_row: int, last_column: int) -> str:
    """A range such as `A1:B2`; all numbers from 1."""
    return f"{column_letters(first_column)}{first_row}:{column_letters(last_column)}{last_row}"
