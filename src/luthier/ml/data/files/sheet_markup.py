"""What openpyxl does not say of a sheet that it reads row by row, found in the sheet's own markup.

Merged cells, formulas without a saved result, and what is hidden (ECMA-376 part 1, 18.3.1).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 1 << 16
_LAST_COLUMN: Final = 16_384
_NUM_SHOWN: Final = 3
_MERGED: Final = re.compile(rb"<(?:\w+:)?mergeCell\s[^>]*?ref=\"([A-Z0-9:]+)\"")
# A formula whose cell holds no value: no <v>, or an empty one. In a cell of text an empty one is a result, "".
_UNSAVED: Final = re.compile(
    rb"<(?:\w+:)?c\s(?![^>]*?\bt=\"str\")[^>]*?\br=\"([A-Z]+[0-9]+)\"[^>]*>"
    rb"\s*<(?:\w+:)?f(?:\s[^>]*)?(?:/>|>[^<]*</(?:\w+:)?f>)"
    rb"\s*(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v></(?:\w+:)?v>)?\s*</(?:\w+:)?c>"
)
# A program that computes nothing, such as XlsxWriter, saves 0 for a formula and has the workbook computed when opened.
_UNCOMPUTED: Final = re.compile(
    rb"<(?:\w+:)?c\s(?![^>]*?\bt=\"(?:str|b|e|s)\")[^>]*?\br=\"([A-Z]+[0-9]+)\"[^>]*>"
    rb"\s*<(?:\w+:)?f(?:\s[^>]*)?(?:/>|>[^<]*</(?:\w+:)?f>)\s*<(?:\w+:)?v>0</(?:\w+:)?v>\s*</(?:\w+:)?c>"
)
_WORKBOOK: Final = "xl/workbook.xml"
_COMPUTED_WHEN_OPENED: Final = re.compile(rb"<(?:\w+:)?calcPr\s[^>]*?\bfullCalcOnLoad=\"(?:1|true)\"")
_HIDDEN_ROW: Final = re.compile(rb"<(?:\w+:)?row\s[^>]*?\bhidden=\"(?:1|true)\"")
_HIDDEN_COLUMNS: Final = re.compile(rb"<(?:\w+:)?col\s(?=[^>]*?\bhidden=\"(?:1|true)\")[^>]*>")
_PLACE: Final = re.compile(rb"\b(min|max)=\"([0-9]{1,7})\"")


@dataclass(frozen=True, slots=True)
class SheetMarkup:
    """Facts of one sheet.

    Attributes:
        merged: ranges of merged cells, such as `A1:B2`.
        unsaved: cells with a formula that has no saved result; 0 is none in a workbook that is to be computed when
            opened.
        num_hidden_rows: rows that the spreadsheet program does not show, by a filter, too.
        num_hidden_columns: columns likewise; those up to the last possible one, as the rest of a sheet, do not count.
    """

    merged: frozenset[str]
    unsaved: frozenset[str]
    num_hidden_rows: int
    num_hidden_columns: int


def sheet_markup(path: Path, part: str) -> SheetMarkup:
    """Search the markup of a sheet, in constant memory.

    Args:
        path: the workbook, which `check_archive` has passed.
        part: the name of the sheet in the archive.
    """
    merged, unsaved, rows = set[str](), set[str](), set[int]()
    columns: dict[int, bytes] = {}
    tail, num_read = b"", 0
    with zipfile.ZipFile(path) as archive, archive.open(part.lstrip("/")) as file:
        has_workbook = _WORKBOOK in archive.namelist()
        is_uncomputed = has_workbook and _COMPUTED_WHEN_OPENED.search(archive.read(_WORKBOOK)) is not None
        while block := file.read(_BLOCK_BYTES):
            window, begin = tail + block, num_read - len(tail)
            num_read += len(block)
            merged.update(found.decode() for found in _MERGED.findall(window))
            unsaved.update(found.decode() for found in _UNSAVED.findall(window))
            if is_uncomputed:
                unsaved.update(found.decode() for found in _UNCOMPUTED.findall(window))
            # By their places in the whole: an overlap finds what is across two blocks, and some things twice.
            rows.update(begin + found.start() for found in _HIDDEN_ROW.finditer(window))
            columns |= {begin + found.start(): found[0] for found in _HIDDEN_COLUMNS.finditer(window)}
            tail = window[-_TAIL_BYTES:]
    return SheetMarkup(frozenset(merged), frozenset(unsaved), len(rows), sum(map(_num_columns, columns.values())))


def _num_columns(element: bytes) -> int:
    places = {name: int(number) for name, number in _PLACE.findall(element)}
    first, last = places.get(b"min", 0), places.get(b"max", _LAST_COLUMN)
    return max(0, last - first + 1) if first and last < _LAST_COLUMN else 0


def cells_shown(cells: Collection[str]) -> str:
    """The first of some cells, and how many more there are."""
    first = sorted(cells, key=lambda one: (len(one), one))[:_NUM_SHOWN]
    more = f" and {len(cells) - _NUM_SHOWN:,} more" if len(cells) > _NUM_SHOWN else ""
    return ", ".join(first) + more
