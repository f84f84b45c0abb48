"""Excel workbooks, by openpyxl row by row: whole numbers stay whole and empty cells stay empty."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from openpyxl import load_workbook  # type: ignore[import-untyped]

from luthier.ml.data.readers.document import Document, Section


def read(path: Path) -> Document:
    """A section a sheet, named by it: a Markdown table. Of a formula the value last computed is read.

    Empty rows are left out, and empty columns at the right. Charts and pictures are not read.
    """
    book = load_workbook(path, read_only=True, data_only=True)
    try:
        sections, warnings = [], []
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # a wrong size in the file would cut rows off without a word
            if text := "\n".join(_table(sheet.iter_rows(values_only=True))):
                sections.append(Section(text, None, (sheet.title,)))
            if sheet.sheet_state != "visible":
                warnings.append(f"the sheet {sheet.title!r} is hidden, and was read")
        charts = [sheet.title for sheet in book.chartsheets]
    finally:
        book.close()
    if charts:
        warnings.append(f"{len(charts)} chart sheets were not read: {', '.join(charts[:5])}")
    return Document(tuple(sections), tuple(warnings))


def _table(rows: Iterator[tuple[Any, ...]]) -> Iterator[str]:
    is_first = True
    for row in rows:
        cells = [_cell(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if not cells:
            continue
        yield f"| {' | '.join(cells)} |"
        if is_first:
            yield f"|{' --- |' * len(cells)}"
        is_first = False


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return " ".join(str(value).split()).replace("|", "\\|")
