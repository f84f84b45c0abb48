"""Texts in CSV files, which people open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any, Final

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are = + - @ in full width."""


def text_cell(text: str) -> str:
    """A text that a spreadsheet shows and does not compute: one that begins like a formula gets an apostrophe in front.

    Only for what people wrote or chose, never for numbers. Source: OWASP, "CSV Injection".
    """
    return f"'{text}" if _is_like_formula(text) else text


def csv_line(cells: Iterable[Any]) -> str:
    """A line of a CSV file, with its end.

    `csv` quotes a carriage return only where it belongs to the end of a line; without quotes spreadsheets, and `csv`
    itself, begin a row there, whose first cell was not checked.
    """
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def text_of_cell(cell: str) -> str:
    """The text of which `text_cell` has made a cell."""
    return cell[1:] if cell.startswith("'") and _is_like_formula(cell) else cell


def _is_like_formula(text: str) -> bool:
    # Behind apostrophes, too: one in front of such a text is then always ours.
    return text.lstrip("'").startswith(_FORMULA_STARTS)
