"""Workbooks of Excel and OpenDocument: numbers as the workbook shows them, dates as ISO 8601."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final

from openpyxl import load_workbook  # type: ignore[import-untyped]
from openpyxl.utils.cell import range_boundaries  # type: ignore[import-untyped]

from luthier.core.text.counted import counted
from luthier.ml.data.files.cell_text import cell_text
from luthier.ml.data.files.sheet_markup import SheetMarkup, cells_shown, sheet_markup
from luthier.ml.data.files.sheets import Sheet
from luthier.ml.data.readers.document import Document, Section

_CHART: Final = re.compile(r"xl/charts/chart(?:Ex)?\d*\.xml")
_COMMENTS: Final = re.compile(r"xl/(?:comments/)?comments?\d*\.xml")
_DRAWING: Final = re.compile(r"xl/drawings/drawing\d*\.xml")


def read(path: Path) -> Document:
    """A section a sheet, named by it: a Markdown table. Of a formula the value last computed is read.

    Empty rows are left out, and empty columns at the right. A value of merged cells is in each of their rows, since a
    passage may hold one of them alone. Comments, charts, pictures and text boxes are not read, which warnings say.
    """
    book = load_workbook(path, read_only=True, data_only=True)
    try:
        sections, warnings = [], []
        for sheet in book.worksheets:
            # Private, but the only way from a sheet to its part in the archive.
            markup = sheet_markup(path, str(sheet._worksheet_path))
            sheet.reset_dimensions()  # a wrong size in the file would cut rows off without a word
            if text := "\n".join(_table(sheet.iter_rows(), _merged(markup), markup.unsaved)):
                sections.append(Section(text, None, (sheet.title,)))
            if sheet.sheet_state != "visible":
                warnings.append(f"the sheet {sheet.title!r} is hidden, and was read")
            warnings += _notes(sheet.title, markup)
        charts = [sheet.title for sheet in book.chartsheets]
    finally:
        book.close()
    if charts:
        not_read = counted(len(charts), "chart sheet was not read", "chart sheets were not read")
        warnings.append(f"{not_read}: {', '.join(charts[:5])}")
    return Document(tuple(sections), (*warnings, *_unread(path, len(charts))))


def read_xls(path: Path) -> Document:
    """A workbook of Excel 97 to 2003, see `read`.

    Raises:
        DataError: it is damaged, or protected by a password.
    """
    from luthier.ml.data.files.xls import read_xls as sheets_of

    return _of_sheets(sheets_of(path))


def read_ods(path: Path) -> Document:
    """An OpenDocument spreadsheet, see `read`.

    Raises:
        DataError: it is damaged, protected by a password, or too large for memory.
    """
    from luthier.ml.data.files.ods import read_ods as sheets_of

    return _of_sheets(sheets_of(path))


def _of_sheets(sheets: Sequence[Sheet]) -> Document:
    sections, warnings = [], []
    for sheet in sheets:
        if text := "\n".join(_table(sheet.iter_rows(), _merged(sheet.markup), ())):
            sections.append(Section(text, None, (sheet.title,)))
        if sheet.sheet_state != "visible":
            warnings.append(f"the sheet {sheet.title!r} is hidden, and was read")
        warnings += _notes(sheet.title, sheet.markup)
    if num_comments := sum(sheet.num_comments for sheet in sheets):
        warnings.append(f"{counted(num_comments, 'comment')} not read")
    return Document(tuple(sections), tuple(warnings))


def _unread(path: Path, num_chart_sheets: int) -> Iterator[str]:
    """What has text that is not read: comments, charts, pictures, and text in drawings."""
    from lxml import etree

    found: Counter[str] = Counter()
    # The document is untrusted: no entities, no network, no external DTD.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if _CHART.fullmatch(name):
                found["chart"] += 1
            elif name.startswith("xl/media/"):
                found["picture"] += 1
            elif _COMMENTS.fullmatch(name):
                found["comment"] += sum(1 for _ in etree.fromstring(archive.read(name), parser).iter("{*}comment"))
            elif _DRAWING.fullmatch(name):
                boxes = etree.fromstring(archive.read(name), parser).iter("{*}txBody")
                found["text box"] += sum(any(text.text for text in box.iter("{*}t")) for box in boxes)
    found["chart"] -= min(found["chart"], num_chart_sheets)  # named by their sheets
    for noun in ("comment", "chart", "picture", "text box"):
        if num := found[noun]:
            yield f"{counted(num, noun, 'text boxes' if noun == 'text box' else '')} not read"


def _notes(title: str, markup: SheetMarkup) -> Iterator[str]:
    hidden = [
        counted(num, f"hidden {what}")
        for num, what in ((markup.num_hidden_rows, "row"), (markup.num_hidden_columns, "column"))
        if num
    ]
    if hidden:
        yield f"the sheet {title!r} has {' and '.join(hidden)}, read with the rest"
    if markup.unsaved:
        yield (
            f"{counted(len(markup.unsaved), 'formula')} without saved result in the sheet {title!r}, read as empty "
            f"cells ({cells_shown(markup.unsaved)}): save it in a spreadsheet program"
        )


@dataclass(frozen=True, slots=True)
class _Merged:
    """Merged cells that are higher than one row: the column of their value, and their rows, both from 1."""

    column: int
    first: int
    last: int


def _merged(markup: SheetMarkup) -> list[_Merged]:
    found = []
    for cells in markup.merged:
        column, first, _, last = range_boundaries(cells)
        if None not in (column, first, last) and last > first:
            found.append(_Merged(column, first, last))
    return sorted(found, key=lambda one: (one.first, one.column))


def _table(rows: Iterable[Sequence[Any]], merged: list[_Merged], unsaved: Collection[str]) -> Iterator[str]:
    is_first, waiting = True, list(reversed(merged))
    open_: dict[_Merged, str] = {}
    for number, row in enumerate(rows, start=1):
        cells = [_cell(cell.value, cell.number_format) for cell in row]
        if unsaved:
            # An empty cell has no place, and a formula that was never computed may hold a 0.
            places = (getattr(cell, "coordinate", "") for cell in row)
            cells = ["" if place in unsaved else text for place, text in zip(places, cells, strict=True)]
        while cells and not cells[-1]:
            cells.pop()
        if not cells:
            continue
        while waiting and waiting[-1].first <= number:
            one = waiting.pop()
            if one.first == number and one.column <= len(cells):
                open_[one] = cells[one.column - 1]
        for one in [one for one in open_ if one.last < number]:
            del open_[one]
        for one, text in open_.items():
            cells += [""] * (one.column - len(cells))
            cells[one.column - 1] = cells[one.column - 1] or text
        yield f"| {' | '.join(cells)} |"
        if is_first:
            yield f"|{' --- |' * len(cells)}"
        is_first = False


def _cell(value: Any, number_format: str | None) -> str:
    # ISO 8601 says more than most formats of dates, which depend on the country.
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, date):
        return value.isoformat()
    return " ".join(cell_text(value, number_format or "General").split()).replace("|", "\\|")
