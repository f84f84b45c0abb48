"""OpenDocument spreadsheets (.ods): values with the digits that the sheet shows, errors, what is merged or hidden."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import DataError
from luthier.ml.data.files.open_document import OFFICE, STYLE, TABLE, TEXT, content, plain_text
from luthier.ml.data.files.sheet_markup import SheetMarkup
from luthier.ml.data.files.sheets import MAX_CELLS, Cell, Sheet, cell_range

_CALC: Final = "{urn:org:documentfoundation:names:experimental:calc:xmlns:calcext:1.0}"
_DECIMALS: Final = re.compile(r"[.,](\d+)\D*$")
_AROUND: Final = re.compile(r"(\D*)(\d(?:.*\d)?)(\D*)", re.DOTALL)
_SIGN: Final = re.compile(r'["()\-\u2212+]')
"""What is no part of the unit of a number."""
_DURATION: Final = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:[.,]\d+)?S)?")
_ERROR: Final = re.compile(r"#(?:DIV/0!|N/A|NAME\?|NULL!|NUM!|REF!|VALUE!)|Err:\d+")


def read_ods(path: Path) -> list[Sheet]:
    """The sheets with cells, in the order of the workbook; of a formula the value last computed is read.

    Raises:
        DataError: the file is damaged, protected by a password, or has more than `MAX_CELLS` cells.
    """
    root = content(path)
    hidden = {
        style.get(f"{STYLE}name")
        for style in root.iter(f"{STYLE}style")
        for properties in style.iter(f"{STYLE}table-properties")
        if properties.get(f"{TABLE}display") == "false"
    }
    num_left = MAX_CELLS
    found = []
    for table in root.iter(f"{TABLE}table"):
        if next((above for above in table.iterancestors(f"{TABLE}table", f"{TABLE}shapes")), None) is not None:
            continue  # of an object inside of a sheet
        sheet = _sheet(table, is_hidden=table.get(f"{TABLE}style-name") in hidden, num_left=num_left)
        num_left -= sum(map(len, sheet.rows))
        found.append(sheet)
    return found


def _sheet(table: Any, *, is_hidden: bool, num_left: int) -> Sheet:
    rows, merged = list[list[Cell]](), set[str]()
    num_hidden = num_comments = number = 0
    for row in table.iter(f"{TABLE}table-row"):
        repeated = int(row.get(f"{TABLE}number-rows-repeated", "1"))
        cells = list(_cells(row, number + 1, merged, num_left))
        if cells:
            rows += [[] for _ in range(number - len(rows))]  # empty rows before it
            num_left -= repeated * len(cells)
            if num_left < 0:
                raise _too_large()
            rows += [[_at(cell, number + step + 1) for cell in cells] for step in range(repeated)]
            num_hidden += repeated * (row.get(f"{TABLE}visibility", "visible") != "visible")
            num_comments += sum(1 for _ in row.iter(f"{OFFICE}annotation"))
        number += repeated
    width = max(map(len, rows), default=0)
    markup = SheetMarkup(frozenset(merged), frozenset(), num_hidden, _num_hidden_columns(table, width))
    title = table.get(f"{TABLE}name") or ""
    return Sheet(title, "hidden" if is_hidden else "visible", rows, markup, num_comments)


def _num_hidden_columns(table: Any, width: int) -> int:
    place = num = 0
    for column in table.iter(f"{TABLE}table-column"):
        repeated = int(column.get(f"{TABLE}number-columns-repeated", "1"))
        if column.get(f"{TABLE}visibility", "visible") != "visible":
            num += max(0, min(place + repeated, width) - place)
        place += repeated
    return num


def _cells(row: Any, number: int, merged: set[str], num_left: int) -> Iterator[Cell]:
    """The cells of a row up to the last one with a value."""
    waiting, column = 0, 0
    for element in row.iter(f"{TABLE}table-cell", f"{TABLE}covered-table-cell"):
        repeated = int(element.get(f"{TABLE}number-columns-repeated", "1"))
        value, number_format, kind = _value(element)
        down, across = (int(element.get(f"{TABLE}number-{what}-spanned", "1")) for what in ("rows", "columns"))
        if down > 1 or across > 1:
            merged.add(cell_range(number, column + 1, number + down - 1, column + across))
        if value in (None, ""):
            waiting += repeated
        else:
            if column + repeated > num_left:
                raise _too_large()
            for place in range(column - waiting, column):
                yield Cell(None, "General", "n", number, place + 1)
            waiting = 0
            for place in range(column, column + repeated):
                yield Cell(value, number_format, kind, number, place + 1)
        column += repeated


def _at(cell: Cell, row: int) -> Cell:
    return Cell(cell.value, cell.number_format, cell.data_type, row, cell.column)


def _too_large() -> DataError:
    return DataError(
        f"it has more than {MAX_CELLS:,} cells with values",
        expected="a smaller workbook",
        do="save the rows as CSV, which is read row by row",
    )


def _value(element: Any) -> tuple[Any, str, str]:
    """Value, number format and type of a cell."""
    shown = "\n".join(plain_text(paragraph) for paragraph in element.iterchildren(f"{TEXT}p"))
    kind = element.get(f"{OFFICE}value-type")
    if element.get(f"{_CALC}value-type") == "error" or (element.get(f"{TABLE}formula") and _ERROR.fullmatch(shown)):
        return shown or "#ERROR", "General", "e"
    if kind == "boolean":
        return element.get(f"{OFFICE}boolean-value") == "true", "General", "n"
    if kind in ("float", "percentage", "currency"):
        with suppress(ValueError):
            number = float(element.get(f"{OFFICE}value", ""))
            return number, _number_format(number, shown, is_percentage=kind == "percentage"), "n"
    if kind == "date" and (day := _date(element.get(f"{OFFICE}date-value", ""))) is not None:
        return day, "General", "n"
    if kind == "time" and (found := _DURATION.fullmatch(element.get(f"{OFFICE}time-value", ""))) is not None:
        hours, minutes, seconds = (int(part or 0) for part in found.groups())
        length = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        return (datetime.min + length).time() if hours < 24 and minutes < 60 else length, "General", "n"
    return element.get(f"{OFFICE}string-value", shown) or None, "General", "n"


def _number_format(number: float, shown: str, *, is_percentage: bool) -> str:
    """With as many decimals as the sheet shows, whichever sign its country has for the point, and with the currency."""
    scaled = abs(number) * (100 if is_percentage else 1)
    after = _DECIMALS.search(shown)
    digits = re.sub(r"\D", "", shown)
    decimals = next(
        # 1,234 is a number above a thousand, or one with three decimals: its value decides.
        (
            num
            for num in (0, len(after[1]) if after is not None else 0)
            if digits and re.sub(r"\D", "", f"{scaled:.{num}f}") == digits
        ),
        None,
    )
    if decimals is None:
        return "0.##########%" if is_percentage else "General"
    around = _AROUND.fullmatch(shown)
    assert around is not None  # it has digits, else `decimals` is None
    before, inner, behind = around.groups()
    whole = inner[: len(inner) - decimals - 1] if decimals else inner
    point = ("0" if whole.isdigit() else "#,##0") + (f".{'0' * decimals}" if decimals else "")
    if is_percentage:
        return f"{point}%"
    before, behind = _SIGN.sub("", before), _SIGN.sub("", behind)
    return (f'"{before}"' if before else "") + point + (f'"{behind}"' if behind else "")


def _date(text: str) -> date | datetime | time | None:
    with suppress(ValueError):
        return datetime.fromisoformat(text) if "T" in text else date.fromisoformat(text)
    return None
