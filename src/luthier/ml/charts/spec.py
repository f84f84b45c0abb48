"""What a chart shows, apart from how it is drawn. `drawer.drawing_of` and the pages' `charts.js` both draw it.

`thinned` reduces a series to fewer points that look the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args

Other = Literal["other-1", "other-2", "other-3", "other-4", "other-5", "other-6", "other-7", "other-8"]
Role = Literal["base", "tuned", Other, "good", "bad", "quiet", "ink", "muted", "rule"]
"""Colours by meaning: base and tuned model first, then what is neither."""
OTHERS: tuple[Role, ...] = get_args(Other)
"""With base and tuned ten colours, which readers with any kind of colour blindness can tell apart, too."""
Point = tuple[float, float]
Tick = tuple[float, str]


class OwnName(str):
    """A name that a person has given: it is shown as it is in every language, also where it is `run`."""

    __slots__ = ()


def points_of(x: Iterable[float], y: Iterable[float]) -> list[Point]:
    """Pairs of plain numbers, from arrays of any kind. The shorter one decides how many."""
    return [(float(a), float(b)) for a, b in zip(x, y, strict=False)]


@dataclass(frozen=True, slots=True)
class Axis:
    """What one direction of a chart measures.

    Attributes:
        name: what it measures; empty where the chart's title says it.
        unit: empty for a plain number.
        scale: how values become places.
        low: an end that must be seen.
        high: the other one.
        ticks: where there are words, and which; empty for round numbers.
        is_reversed: whether small values are at the top, or to the right.
        is_shown: whether it has ticks and a grid.
        least: what the value cannot be below, such as 0 for a share; the axis never extends further.
        most: what it cannot be above.
    """

    name: str
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"
    low: float | None = None
    high: float | None = None
    ticks: Sequence[Tick] = ()
    is_reversed: bool = False
    is_shown: bool = True
    least: float | None = None
    most: float | None = None

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def ends(self, values: Iterable[float], *, is_round: bool = False) -> Point:
        """What the axis spans: all values, the ends that must be seen, and no margin where no value can be.

        Args:
            values: everything that is drawn along the axis, ends of intervals included.
            is_round: whether the axis reaches to round numbers, so that its last tick is not short of a value.
        """
        asked = (end for end in (self.low, self.high) if end is not None)
        known = [value for value in (*values, *asked) if math.isfinite(value)]
        if self.scale == "log":
            return self._log_ends([value for value in known if value > 0] or [1.0])
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        if low == high:
            room = abs(low) / 10 or 1.0
            return self._outer(low, low - room, high, high + room)
        # An end that was requested stays exact, and zero too, so that an axis of counts never begins below it.
        is_exact = (low in (self.low, 0), high in (self.high, 0))
        if is_round and self.is_shown and not self.ticks:
            first, last = _rounded_out(low, high)
        else:
            room = (high - low) * 0.04
            first, last = low - room, high + room
        return self._outer(low, low if is_exact[0] else first, high, high if is_exact[1] else last)

    def _log_ends(self, known: Sequence[float]) -> Point:
        low, high = min(known), max(known)
        if low == high:
            return low / 2, high * 2
        room = (high / low) ** 0.04  # dots at the ends are seen whole
        return (low if self.low == low else low / room), (high if self.high == high else high * room)

    def _outer(self, low: float, first: float, high: float, last: float) -> Point:
        """The ends with their margin, of which nothing is left where no value can be."""
        first = first if self.least is None else max(first, self.least)
        last = last if self.most is None else min(last, self.most)
        return min(low, first), max(high, last)


def tick_step(low: float, high: float, most: int = 6) -> float:
    """1, 2 or 5 times a power of ten, such that at most `most` multiples are in the range. high is above low."""
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    # The tolerance keeps a step that equals `rough` but for rounding.
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def _rounded_out(low: float, high: float) -> Point:
    """A range whose first and last tick are at or beyond both ends."""
    first, last = low, high
    # A wider range may have wider steps. Two turns are enough but for rounding; nothing may turn forever here.
    for _ in range(8):
        step = tick_step(first, last)
        below, above = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        # Ticks inside the range are enough: from -6 to 6 they are -5, 0 and 5; from -5 to 5 they would end at 4.
        if first <= min(low, below) and max(high, above) <= last:
            break
        # min and max: a multiple of the step may be off by rounding.
        first, last = min(low, below), max(high, above)
    return first, last


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind over both axes.

    Attributes:
        name: as the legend has it; a series without one is not in the legend.
        points: (x, y) in the order of x; of `columns` the left edge and the height of each, the last with height 0.
        role: its colour.
        shape: how the points are joined. columns: filled down to zero.
        labels: what each point is, to be read on hover; empty for none.
        intervals: (low, high) of each point: a band around a line, a whisker at a dot; empty for none.
        is_dashed: for what is expected, or secondary.
        is_faint: for what is behind another line.
        mark: the form of its dots, and of points on a line where there are few.
        is_open: whether dots are rings.
        radius_pixels: of a dot.
        shown: its name in the legend of a page in another language; empty for `name`.
    """

    name: str
    points: Sequence[Point]
    role: Role = "tuned"
    shape: Literal["line", "dots", "steps", "columns"] = "line"
    labels: Sequence[str] = ()
    intervals: Sequence[Point] = ()
    is_dashed: bool = False
    is_faint: bool = False
    mark: Literal["circle", "square", "diamond"] = "circle"
    is_open: bool = False
    radius_pixels: float = 3.0
    shown: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across the chart with a word.

    Attributes:
        x: Where it is on its axis.
        name: The word; empty for none.
        axis: The axis of `x`.
        role: Its colour.
        is_dashed: Whether it is dashed.
    """

    x: float
    name: str
    axis: Literal["x", "y"] = "x"
    role: Role = "muted"
    is_dashed: bool = True


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the x axis that is shaded."""

    low: float
    high: float
    role: Role = "rule"


@dataclass(frozen=True, slots=True)
class Note:
    """Words at a point.

    Attributes:
        x: Of the point.
        y: Of the point.
        text: The words.
        role: Their colour.
        is_ringed: Whether the point has a ring around it.
        below: Whether the text is below the point.
        is_bold: Whether they are bold.
    """

    x: float
    y: float
    text: str
    role: Role = "ink"
    is_ringed: bool = False
    below: bool = False
    is_bold: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines and dots over two axes.

    Attributes:
        key: names it among the charts of a page, for what comes later.
        title: its heading.
        x: across.
        y: up.
        series: what is drawn, the last on top.
        marks: lines with words.
        caption: the sentence below it.
        group: charts of one group show the same place at the same time.
        tools: whether a reader may smooth the lines and take the logarithm, where scripts run.
        spans: shaded stretches.
        notes: words at points.
        description: what a screen reader says in place of the picture; empty: the caption.
        width_pixels: of the static drawing, before it is fitted into the page.
        height_pixels: the same.
    """

    key: str
    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    caption: str = ""
    group: str = ""
    tools: bool = False
    spans: Sequence[Span] = ()
    notes: Sequence[Note] = ()
    description: str = ""
    width_pixels: int = 560
    height_pixels: int = 260

    @property
    def y_ends(self) -> Point:
        """What the y axis spans: every point and interval, and zero where columns start at it.

        Where both ends of the axis are fixed, wide intervals do not stretch it: bands are cut off at the frame.
        """
        heights = [y for series in self.series for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
        ranges = [pair for series in self.series for pair in series.intervals]
        if self.y.low is None or self.y.high is None:
            heights += [end for pair in ranges for end in pair]
        heights += [0.0] * any(series.shape == "columns" for series in self.series)
        return self.y.ends(heights, is_round=bool(ranges))

    def as_json(self) -> dict[str, Any]:
        """For the script."""
        # Titles are properties, which the fields do not hold.
        return {"kind": "plot", **_fields(self), "x_title": self.x.title, "y_title": self.y.title}


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """One row of an interval chart: a value with the ends of its interval. words: the text next to it."""

    name: str
    value: float
    low: float
    high: float
    role: Role = "tuned"
    words: str = ""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Estimates one below the other.

    Attributes:
        zero: whether a line at zero separates better from worse.
        limit: another line that they are compared with.
    """

    key: str
    title: str
    x: Axis
    rows: Sequence[IntervalRow]
    zero: bool = False
    caption: str = ""
    limit: Mark | None = None
    description: str = ""
    width_pixels: int = 560

    @property
    def ends(self) -> Point:
        """What the axis spans: every interval, the limit and, where it is drawn, zero."""
        values = [end for row in self.rows for end in (row.value, row.low, row.high)] + [0.0] * self.zero
        return self.x.ends([*values, *_of_mark(self.limit)], is_round=True)

    def as_json(self) -> dict[str, Any]:
        """For the script."""
        return {"kind": "intervals", **_fields(self), "x_title": self.x.title, "ends": self.ends}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with what is written at its end.

    `start` and `other` are in the static drawing alone; the script of the pages draws bars from zero.

    Attributes:
        name: of its row.
        value: where it ends.
        words: at its end; empty for the value.
        role: its colour.
        start: where it begins.
        other: (end, role) of a second bar in the same row from the same start.
        other_words: at the end of the second bar.
        interval: the range of the value, as a thin line.
    """

    name: str
    value: float
    words: str = ""
    role: Role = "tuned"
    start: float = 0.0
    other: tuple[float, Role] | None = None
    other_words: str = ""
    interval: Point | None = None


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars one below the other. limit: a line that they are compared with."""

    key: str
    title: str
    x: Axis
    rows: Sequence[Bar]
    limit: Mark | None = None
    caption: str = ""
    description: str = ""
    width_pixels: int = 560

    @property
    def ends(self) -> Point:
        """What the axis spans: every bar with its interval, and the limit."""
        values = [end for row in self.rows for end in (row.start, row.value, *(row.interval or ()))]
        values += [row.other[0] for row in self.rows if row.other is not None]
        return self.x.ends([*values, *_of_mark(self.limit)], is_round=True)

    def as_json(self) -> dict[str, Any]:
        """For the script."""
        return {"kind": "bars", **_fields(self), "x_title": self.x.title, "ends": self.ends}


def _of_mark(mark: Mark | None) -> list[float]:
    return [] if mark is None else [mark.x]


@dataclass(frozen=True, slots=True)
class Column:
    """One axis of a parallel chart, and what its lower and its upper end mean."""

    name: str
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Thread:
    """One line through all columns.

    Attributes:
        name: Of what it represents.
        heights: On each column from 0 to 1; None where it has no part.
        words: Shown on hover.
        role: Its colour.
    """

    name: str
    heights: Sequence[float | None]
    words: str = ""
    role: Role = "tuned"


@dataclass(frozen=True, slots=True)
class Parallel:
    """A line for each thing across its properties, each column with its own scale. The last is drawn on top."""

    key: str
    title: str
    columns: Sequence[Column]
    lines: Sequence[Thread]
    caption: str = ""
    description: str = ""
    width_pixels: int = 560
    height_pixels: int = 260

    def as_json(self) -> dict[str, Any]:
        """For the script."""
        return {"kind": "parallel", **_fields(self)}


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a matrix. share: from 0 to 1, how strong its colour is."""

    share: float
    words: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """A number for each pair of a row and a column; None where there is none."""

    key: str
    title: str
    x: Axis
    y: Axis
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[Cell | None]]
    role: Role = "tuned"
    caption: str = ""
    description: str = ""
    width_pixels: int = 460

    def as_json(self) -> dict[str, Any]:
        """For the script."""
        cells = [[None if cell is None else _fields(cell) for cell in row] for row in self.cells]
        return {"kind": "matrix", **_fields(self), "cells": cells, "x_title": self.x.title, "y_title": self.y.title}


Chart = Plot | Intervals | Bars | Parallel | Matrix


def _fields(value: Any) -> dict[str, Any]:
    """A chart as plain values. Points, of which there may be many, are not copied."""
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _fields(value)
    is_of_parts = isinstance(value, list | tuple) and value and is_dataclass(value[0])
    return [_fields(one) for one in value] if is_of_parts else value


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points: the first, the last, and of each stretch of x the lowest and the highest.

    All stretches are equally wide, so that a series that was thinned and then continued can be thinned again without
    its beginning becoming coarser than its end.

    Args:
        points: in the order of x.
        most: about how many points are kept.
    """
    if len(points) <= most:
        return list(points)
    first, last = points[0][0], points[-1][0]
    width = (last - first) / max(1, most // 2 - 1) or 1.0
    kept: list[Point] = []
    lowest = highest = points[0]
    place = 0
    for point in points:
        if (its_place := int((point[0] - first) / width)) != place:
            kept += sorted({lowest, highest})
            lowest = highest = point
            place = its_place
        elif point[1] < lowest[1]:
            lowest = point
        elif point[1] > highest[1]:
            highest = point
    kept += sorted({lowest, highest})
    return [*([] if kept[0] == points[0] else points[:1]), *kept, *([] if kept[-1] == points[-1] else points[-1:])]
