"""The text of a PDF page as it is read: in the order of its columns, and with blanks between its cells.

PDFium gives text in the order in which it was drawn. Nearly all programs draw one column after the other; some draw
line by line over all of them, and what is read then mixes their texts in every line. Such a page is read by columns:
what crosses a gutter (titles, captions) parts it from top to bottom, and between two such lines the columns come from
left to right. A table is drawn line by line, too, and stays so: its cells are no lines of prose, which fill their
column and continue in lower case.
"""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import Final, NamedTuple

import pypdfium2

_FEWEST_LINES: Final = 5
"""In each column; below that nothing shows that it is prose."""
_GUTTERS: Final = range(35, 66, 2)
"""Where the gutter of two columns is looked for, in percent of the width of the text."""
_MANY_GUTTERS: Final = range(15, 86)
"""Where those of more columns are looked for."""
_MOST_GUTTERS: Final = 3
_MAX_WIDE: Final = 0.2
_MAX_GAP: Final = 0.12
_FEWEST_SWITCHES: Final = 0.8
_FULL_LINE: Final = 0.7
_GOES_ON: Final = 0.3
_SIGN_WIDTH: Final = 1.5
_GAP: Final = 0.5
"""Both in heights of the sign, or of what is before it."""


class Box(NamedTuple):
    """The place of a piece of text, in points from the lower left corner."""

    left: float
    bottom: float
    right: float
    top: float


def page_text(text_page: pypdfium2.PdfTextPage) -> str:
    """The text of a page, with a line end behind each line."""
    boxes = [Box(*text_page.get_rect(number)) for number in range(text_page.count_rects())]
    gutters = next((some for some in _gutters(boxes) if _are_columns(text_page, boxes, some)), ())
    if not gutters:
        return _with_gaps(text_page, boxes)
    edges = (min(box.left for box in boxes) - 1, *gutters, max(box.right for box in boxes) + 1)
    at, parts = max(box.top for box in boxes) + 1, list[str]()

    def read_columns(down_to: float) -> None:
        for left, right in pairwise(edges):
            parts.append(text_page.get_text_bounded(left, down_to, right, at))

    for bottom, top in _wide_lines([box for box in boxes if _is_wide(box, gutters)]):
        if top < at:
            read_columns(top)
        parts.append(text_page.get_text_bounded(edges[0], bottom, edges[-1], top))
        at = bottom
    read_columns(min(box.bottom for box in boxes) - 1)
    return "\n".join(part.strip("\r\n") for part in parts if part.strip())


def _with_gaps(text_page: pypdfium2.PdfTextPage, boxes: Sequence[Box]) -> str:
    """The text with a blank before each single sign that is apart from what is before it in its line.

    PDFium has a line end there, or nothing at all: a column of numbers of one digit would be part of the words beside
    it.
    """
    text, places = str(text_page.get_text_bounded()), list[int]()
    for before, box in pairwise(boxes):
        height = max(box.top - box.bottom, before.top - before.bottom)
        is_sign = 0 < box.right - box.left < _SIGN_WIDTH * height
        is_beside = min(box.top, before.top) - max(box.bottom, before.bottom) > 0
        if is_sign and is_beside and box.left - before.right > _GAP * height:
            index = text_page.get_index(box.left + (box.right - box.left) / 5, (box.bottom + box.top) / 2, 1, 1)
            if index and text_page.get_text_range(index - 1, 1) != " ":
                places.append(index)
    # Text outside of the page's box is in the one and not in the other: then places are not those of the text.
    if not places or "".join(text_page.get_text_range().split()) != "".join(text.split()):
        return text
    cuts = [0, *sorted(set(places)), text_page.count_chars()]
    pieces = [text_page.get_text_range(start, end - start) for start, end in pairwise(cuts)]
    return " ".join([*(piece.rstrip("\r\n") for piece in pieces[:-1]), pieces[-1]])


def _wide_lines(boxes: Sequence[Box]) -> list[tuple[float, float]]:
    """From where to where lines reach that cross the gutter, from the top down; those that overlap are one."""
    found: list[tuple[float, float]] = []
    for box in sorted(boxes, key=lambda one: -one.top):
        if found and box.top > found[-1][0]:
            found[-1] = (min(found[-1][0], box.bottom), found[-1][1])
        else:
            found.append((box.bottom, box.top))
    return found


def _gutters(boxes: Sequence[Box]) -> Iterator[tuple[float, ...]]:
    """Where columns may be parted: first those of three and more columns, then that of two."""
    if len(boxes) < 2 * _FEWEST_LINES:
        return
    first, last = min(box.left for box in boxes), max(box.right for box in boxes)
    most = _MAX_WIDE * len(boxes)

    def emptiest(places: Sequence[float]) -> float:
        crossing = [_num_crossing(boxes, place) for place in places]
        free = [place for place, num in zip(places, crossing, strict=True) if num == min(crossing)]
        return free[len(free) // 2]

    # Where hardly a line is crossed, places that lie side by side together.
    corridors: list[list[float]] = [[]]
    for percent in _MANY_GUTTERS:
        place = first + (last - first) * percent / 100
        if _num_crossing(boxes, place) <= most:
            corridors[-1].append(place)
        elif corridors[-1]:
            corridors.append([])
    found = tuple(emptiest(places) for places in corridors if places)
    if 1 < len(found) <= _MOST_GUTTERS:
        yield found
    middle = emptiest([first + (last - first) * percent / 100 for percent in _GUTTERS])
    if _num_crossing(boxes, middle) <= most:
        yield (middle,)


def _num_crossing(boxes: Sequence[Box], place: float) -> int:
    return sum(box.left < place < box.right for box in boxes)


def _is_wide(box: Box, gutters: Sequence[float]) -> bool:
    """Whether a piece of text crosses a gutter."""
    return any(box.left < gutter < box.right for gutter in gutters)


def _are_columns(text_page: pypdfium2.PdfTextPage, boxes: Sequence[Box], gutters: Sequence[float]) -> bool:
    """Whether what lies between gutters is columns of prose that were drawn line by line."""
    within = [(box, bisect(gutters, box.left)) for box in boxes if not _is_wide(box, gutters)]
    columns = [[box for box, side in within if side == number] for number in range(len(gutters) + 1)]
    lines = [_lines(column) for column in columns]
    fewest = min(map(len, lines))
    if fewest < _FEWEST_LINES:
        return False
    # In the order in which they were drawn: line by line the side changes with each, column by column once.
    num_switches = sum(one != other for (_, one), (_, other) in pairwise(within))
    if num_switches < _FEWEST_SWITCHES * len(gutters) * fewest:
        return False
    width = max(box.right for box in boxes) - min(box.left for box in boxes)
    gaps = [min(box.left for box in after) - max(box.right for box in before) for before, after in pairwise(columns)]
    if max(gaps) > _MAX_GAP * width or not all(map(_is_full, lines)):
        return False
    return all(_goes_on(text_page, column) for column in columns[:-1])


def _lines(column: Sequence[Box]) -> list[Box]:
    """The lines of a column: its pieces of text at one height together."""
    found: dict[int, list[Box]] = defaultdict(list)
    for box in column:
        found[round((box.bottom + box.top) / 4)].append(box)
    return [
        Box(min(lefts), min(bottoms), max(rights), max(tops))
        for lefts, bottoms, rights, tops in (zip(*line, strict=True) for line in found.values())
    ]


def _is_full(lines: Sequence[Box]) -> bool:
    """Whether most lines fill their column, as those of prose do."""
    width = max(line.right for line in lines) - min(line.left for line in lines)
    return median(line.right - line.left for line in lines) >= _FULL_LINE * width


def _goes_on(text_page: pypdfium2.PdfTextPage, column: Sequence[Box]) -> bool:
    """Whether lines of a column continue in lower case, as those of prose do and cells of a table do not."""
    begins = [text_page.get_text_bounded(*line).lstrip()[:1] for line in _lines(column)]
    return bool(sum(begin.islower() for begin in begins) >= _GOES_ON * len(begins))
