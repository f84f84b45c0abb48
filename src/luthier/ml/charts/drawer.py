"""How each kind of chart is laid out: from its data to shapes. Without a script this drawing is what a reader sees."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.ml.charts.drawing import (
    Anchor,
    Area,
    Dot,
    Drawing,
    Line,
    Rule,
    Shape,
    Text,
    box,
    linear_ticks,
    log_ticks,
    short,
    text_width,
    two_lines,
    words,
)
from luthier.ml.charts.figures import rough
from luthier.ml.charts.spec import (
    Axis,
    Bar,
    Bars,
    Chart,
    Intervals,
    Mark,
    Matrix,
    Note,
    Parallel,
    Plot,
    Point,
    Role,
    Series,
    Tick,
    thinned,
)

_TOP: Final = 14.0
_RIGHT: Final = 14.0
_ROW: Final = 32.0
_LABELS: Final = 176.0
_LINE: Final = 15.0
_MOST_POINTS: Final = 240
_FEW_POINTS: Final = 12
"""A line through fewer points shows each of them."""
Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The part of a drawing that shows values, in pixels from the upper left corner."""

    left: float
    right: float
    top: float
    bottom: float


def drawing_of(chart: Chart, *, has_legend: bool = False) -> Drawing | None:
    """The chart as shapes; None where there is nothing to draw.

    Args:
        chart: The chart.
        has_legend: Whether a plot names its series inside.
    """
    if isinstance(chart, Plot):
        return _plot(chart, has_legend)
    if isinstance(chart, Intervals):
        return _intervals(chart)
    if isinstance(chart, Bars):
        return _bars(chart)
    return _matrix(chart) if isinstance(chart, Matrix) else _parallel(chart)


def _drawing(chart: Chart, width: float, height: float, shapes: Sequence[Shape]) -> Drawing:
    return Drawing(chart.key, chart.title, chart.description or chart.caption, width, height, shapes)


def _plot(chart: Plot, has_legend: bool) -> Drawing | None:
    points = [point for series in chart.series for point in _finite(series.points)]
    # A series of which no point is a number leaves nothing to scale the axes by.
    if not points:
        return None
    x_ends, y_ends = chart.x.ends(p[0] for p in points), chart.y_ends
    # Before the frame, whose left edge depends on the widest of these words.
    up = _ticks(chart.y, y_ends)
    legend, depth = _legend(chart) if has_legend else ([], 0.0)
    frame = _Frame(
        left=_left_of(chart.y, up),
        right=chart.width_pixels - _RIGHT,
        top=_TOP + depth + (_LINE if any(mark.name and mark.axis == "x" for mark in chart.marks) else 0),
        bottom=chart.height_pixels - (_below(chart.x)),
    )
    x = _scale(chart.x, x_ends, (frame.left, frame.right))
    y = _scale(chart.y, y_ends, (frame.bottom, frame.top))
    shapes: list[Shape] = [*legend]
    for span in chart.spans:
        # Sorted after scaling: a reversed axis swaps the ends.
        low, high = sorted(min(max(x(end), frame.left), frame.right) for end in (span.low, span.high))
        opacity = 0.4 if span.role == "rule" else 0.13
        shapes.append(box(low, frame.top, high - low, frame.bottom - frame.top, span.role, opacity))
    # The grid comes before the series, which are drawn over it.
    if chart.y.is_shown:
        shapes += _grid_up(chart.y, up, y, frame)
    if chart.x.is_shown:
        shapes += _axis_across(chart.x, _ticks(chart.x, x_ends), x, frame, has_grid=False)
    for series in chart.series:
        shapes += _series(series, x, y, frame)
    for mark in chart.marks:
        # A mark outside the shown range would be outside the frame.
        if (x_ends if mark.axis == "x" else y_ends)[0] <= mark.x <= (x_ends if mark.axis == "x" else y_ends)[1]:
            shapes += _mark(mark, x if mark.axis == "x" else y, frame)
    for note in chart.notes:
        shapes += _note(note, x(note.x), y(note.y), frame)
    return _drawing(chart, chart.width_pixels, chart.height_pixels, shapes)


def _series(series: Series, x: Scale, y: Scale, frame: _Frame) -> list[Shape]:
    shapes: list[Shape] = []
    if series.intervals:
        shapes += _band(series, x, y, frame)
    # More points than pixels could show only make the page heavy.
    places = [(x(a), y(b)) for a, b in thinned(_finite(series.points), _MOST_POINTS)]
    opacity = 0.45 if series.is_faint else 1.0
    # A line through a single point would not be seen.
    if series.shape == "dots" or len(places) == 1:
        return shapes + [shape for place in places for shape in _dot(series, place, opacity)]
    if series.shape in ("steps", "columns"):
        # A step holds its height up to the next x: each pair of points becomes two corners.
        places = [p for (a, b), (c, _) in itertools.pairwise(places) for p in ((a, b), (c, b))] + places[-1:]
    if series.shape == "columns":
        ground = y(0.0)
        return [*shapes, Area([(places[0][0], ground), *places, (places[-1][0], ground)], series.role, 0.85)]
    shapes.append(Line(places, series.role, 0.9 if series.is_faint else 1.8, series.is_dashed, opacity))
    if len(series.points) < _FEW_POINTS and series.shape == "line" and not series.is_faint:
        shapes += [shape for place in places for shape in _dot(series, place, opacity)]
    return shapes


def _band(series: Series, x: Scale, y: Scale, frame: _Frame) -> list[Shape]:
    """The intervals: whiskers of dots, and of a line a band, cut off at the frame."""
    ends = [
        (x(at), *sorted(min(max(y(end), frame.top), frame.bottom) for end in pair))
        for (at, _), pair in zip(series.points, series.intervals, strict=True)
        if all(map(math.isfinite, pair))
    ]
    if series.shape == "dots":
        return [Line([(at, low), (at, high)], series.role, 1.6, opacity=0.6) for at, low, high in ends]
    return [Area([*((at, low) for at, low, _ in ends), *((at, high) for at, _, high in ends[::-1])], series.role, 0.17)]


def _dot(series: Series, place: Point, opacity: float) -> list[Shape]:
    radius, (x, y) = series.radius_pixels, place
    if series.mark == "circle":
        return [Dot(place, radius, series.role, series.is_open, opacity)]
    if series.mark == "square":
        return [box(x - radius, y - radius, 2 * radius, 2 * radius, series.role, opacity)]
    # A diamond is smaller than a square as wide, so it reaches out further to look as large.
    reach = 1.3 * radius
    return [Area([(x - reach, y), (x, y - reach), (x + reach, y), (x, y + reach)], series.role, opacity)]


def _grid_up(axis: Axis, ticks: Sequence[Tick], y: Scale, frame: _Frame) -> list[Shape]:
    shapes: list[Shape] = []
    for value, word in ticks:
        shapes.append(Rule((frame.left, y(value)), (frame.right, y(value))))
        shapes.append(Text((frame.left - 6, y(value) + 4), word, anchor="end", is_figure=not axis.ticks))
    if axis.title:
        middle = (frame.top + frame.bottom) / 2
        # A character takes about 6.5 pixels along the turned title.
        most = int((frame.bottom - frame.top) / 6.5)
        shapes.append(Text((12, middle), short(axis.title, most), anchor="middle", angle=-90))
    return shapes


def _axis_across(axis: Axis, ticks: Sequence[Tick], x: Scale, frame: _Frame, *, has_grid: bool) -> list[Shape]:
    shapes: list[Shape] = [] if has_grid else [Rule((frame.left, frame.bottom), (frame.right, frame.bottom))]
    end = -math.inf
    for value, word in ticks:
        at, half = x(value), text_width(word) / 2
        if has_grid:
            shapes.append(Rule((at, frame.top), (at, frame.bottom)))
        if at - half >= end + 4:  # words that would run into each other are left out
            shapes.append(Text((at, frame.bottom + 16), word, anchor="middle", is_figure=not axis.ticks))
            end = at + half
    for number, line in enumerate(axis.title.split("\n") if axis.title else ()):
        middle = (frame.left + frame.right) / 2
        shapes.append(Text((middle, frame.bottom + 34 + _LINE * number), line, anchor="middle"))
    return shapes


def _mark(mark: Mark, scale: Scale, frame: _Frame) -> list[Shape]:
    at = scale(mark.x)
    width = 1.0 if mark.role == "muted" else 1.5
    if mark.axis == "y":
        line = Rule((frame.left, at), (frame.right, at), mark.role, width, mark.is_dashed)
        return [line, Text((frame.right, at - 5), mark.name, mark.role, "end")] if mark.name else [line]
    shapes: list[Shape] = [Rule((at, frame.top), (at, frame.bottom), mark.role, width, mark.is_dashed)]
    if mark.name:
        # A name that would leave the drawing at the right is written to the left of its mark.
        is_late = at + text_width(mark.name) > frame.right
        shapes.append(Text((at, frame.top - 4), mark.name, mark.role, "end" if is_late else "start"))
    return shapes


def _note(note: Note, x: float, y: float, frame: _Frame) -> list[Shape]:
    half = text_width(note.text) / 2
    # Text is centred on its point, but near an edge it is moved inwards.
    anchor: Anchor = "start" if x - half < frame.left else "end" if x + half > frame.right else "middle"
    base = y + 20 if note.below else y - 9
    left = {"start": x, "middle": x - half, "end": x - 2 * half}[anchor]
    shapes: list[Shape] = [Dot((x, y), 7, note.role, is_open=True)] if note.is_ringed else []
    # Behind the words, so that they can be read across lines.
    paper = box(left - 2, base - 11, 2 * half + 4, 14, "paper", 0.75)
    return [*shapes, paper, Text((x, base), note.text, note.role, anchor, is_bold=note.is_bold)]


def _legend(chart: Plot) -> tuple[list[Shape], float]:
    """The names of the series above the frame, in as many lines as they need, and how high those are."""
    shapes: list[Shape] = []
    x, line, names = 8.0, 0, set[str]()
    for series in chart.series:
        # Several series may share a name, such as the seeds of one run: they are one entry.
        if not series.name or not series.points or series.name in names:
            continue
        names.add(series.name)
        wide = 22 + text_width(series.name) + 14
        # A name wider than the whole line stays where it is: a new line would not help.
        if x + wide > chart.width_pixels and x > 8:
            x, line = 8.0, line + 1
        middle = 10 + _LINE * line
        if series.shape == "dots":
            shapes += _dot(series, (x + 8, middle), 1.0)
        else:
            shapes.append(Line([(x, middle), (x + 16, middle)], series.role, 2.2, series.is_dashed))
        shapes.append(Text((x + 22, middle + 4), series.name))
        x += wide
    return shapes, _LINE * (line + 1)


def _intervals(chart: Intervals) -> Drawing | None:
    rows = [row for row in chart.rows if all(map(math.isfinite, (row.value, row.low, row.high)))]
    if not rows:
        return None
    frame, x, shapes = _rows(chart, [row.name for row in rows], _RIGHT)
    if chart.zero:
        shapes.append(Rule((x(0), frame.top), (x(0), frame.bottom), "muted", 1.0, True))
    if chart.limit is not None:
        shapes += _mark(chart.limit, x, frame)
    for number, row in enumerate(rows):
        y = frame.top + _ROW * (number + 0.5)
        shapes.append(Line([(x(row.low), y), (x(row.high), y)], row.role, 2.5))
        shapes.append(Dot((x(row.value), y), 4, row.role))
        if row.words:
            shapes.append(Text((x(row.value), y - 7), row.words, "ink", "middle", 11))
    return _drawing(chart, chart.width_pixels, frame.bottom + _below(chart.x), shapes)


def _bars(chart: Bars) -> Drawing | None:
    rows = [row for row in chart.rows if math.isfinite(row.value)]
    if not rows:
        return None
    ends_words = [row.words or rough(row.value) for row in rows] + [row.other_words for row in rows]
    # Room for the words behind the longest bar.
    room = min(150.0, 12 + max(map(text_width, ends_words)))
    has_left = any(row.other is not None or row.value < row.start for row in rows)
    frame, x, shapes = _rows(chart, [row.name for row in rows], room, room if has_left else 0.0)
    for number, row in enumerate(rows):
        y = frame.top + _ROW * number + 7
        interval = row.interval if row.interval is not None and all(map(math.isfinite, row.interval)) else None
        own = (row.value, row.role, row.words or rough(row.value), interval)
        for value, role, text, reach in (own, *_second(row)):
            left, right = sorted((x(row.start), x(value)))
            # A bar of zero is still a thin line.
            shapes.append(box(left, y, max(right - left, 0.5), 18, role))
            is_left = value < row.start
            # Words begin behind the bar's own interval, which reaches further than the bar, on the side it grows to.
            end = x(value) if reach is None else x(reach[0] if is_left else reach[1])
            at, is_figure = (end + (-6 if is_left else 6), y + 13), text not in (row.words, row.other_words)
            shapes.append(Text(at, text, anchor="end" if is_left else "start", is_figure=is_figure))
        if interval is not None:
            shapes.append(Line([(x(interval[0]), y + 9), (x(interval[1]), y + 9)], "ink", 1.4))
    if chart.limit is not None:
        shapes += _mark(chart.limit, x, frame)
    return _drawing(chart, chart.width_pixels, frame.bottom + _below(chart.x), shapes)


def _second(row: Bar) -> list[tuple[float, Role, str, None]]:
    if row.other is None or not math.isfinite(row.other[0]):
        return []
    return [(*row.other, row.other_words, None)]


def _rows(
    chart: Intervals | Bars, names: Sequence[str], right: float, left: float = 0.0
) -> tuple[_Frame, Scale, list[Shape]]:
    """Names at the left and the axis below: what charts of rows have in common. right, left: room for words there."""
    labels = [two_lines(name) for name in names]
    # As wide as the longest label, up to a limit beyond which labels are in two lines or shortened.
    wide = min(_LABELS, 18 + max(text_width(line) for lines in labels for line in lines))
    top = _TOP + (_LINE if chart.limit is not None and chart.limit.name else 0)
    frame = _Frame(wide, chart.width_pixels - _RIGHT, top, top + _ROW * len(names))
    ends = chart.ends
    x = _scale(chart.x, ends, (wide + left, chart.width_pixels - right))
    shapes = _axis_across(chart.x, _ticks(chart.x, ends), x, frame, has_grid=True) if chart.x.is_shown else []
    for number, lines in enumerate(labels):
        y = frame.top + _ROW * (number + 0.5) + 4 - _LINE / 2 * (len(lines) - 1)
        shapes += [Text((wide - 12, y + 13 * n), line, "ink", "end") for n, line in enumerate(lines)]
    return frame, x, shapes


def _parallel(chart: Parallel) -> Drawing | None:
    if not chart.lines or not chart.columns:
        return None
    left, top, bottom = 58.0, 62.0, chart.height_pixels - 22.0
    # A single column is at the left.
    gap = (chart.width_pixels - 2 * left) / max(1, len(chart.columns) - 1)
    shapes: list[Shape] = []
    for number, column in enumerate(chart.columns):
        at = left + gap * number
        shapes.append(Rule((at, top), (at, bottom)))
        shapes.append(Text((at, top - 18), short(column.name, 16), "ink", angle=-24))
        shapes.append(Text((at, top - 5), short(column.high, 9), anchor="middle"))
        shapes.append(Text((at, bottom + 15), short(column.low, 9), anchor="middle"))
    for line in chart.lines:
        is_quiet = line.role in ("quiet", "muted")
        # A trial without a value in a column leaves a gap there instead of a line through it.
        for piece in _pieces(line.heights):
            places = [(left + gap * n, bottom - h * (bottom - top)) for n, h in piece]
            shapes.append(Line(places, line.role, 0.9 if is_quiet else 1.8, opacity=0.5 if is_quiet else 1.0))
    return _drawing(chart, chart.width_pixels, chart.height_pixels, shapes)


def _pieces(heights: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """The stretches of a line without a gap, each as (column, height)."""
    found: list[list[tuple[int, float]]] = [[]]
    for number, height in enumerate(heights):
        if height is None:
            found.append([])
        else:
            found[-1].append((number, height))
    return [piece for piece in found if piece]


def _matrix(chart: Matrix) -> Drawing | None:
    if not chart.cells or not chart.columns:
        return None
    names = [short(name, 16) for name in chart.rows]
    left = 12 + max(map(text_width, names)) + (18 if chart.y.title else 0)
    wide = (chart.width_pixels - left - 8) / len(chart.columns)
    high = min(36.0, max(24.0, wide * 0.8))
    bottom = 8 + high * len(chart.rows)
    size = min(12.0, wide / 2.6)
    shapes: list[Shape] = []
    for number, (name, row) in enumerate(zip(names, chart.cells, strict=True)):
        y = 8 + high * number
        shapes.append(Text((left - 6, y + high / 2 + 4), name, "ink", "end"))
        for column, cell in enumerate(row):
            if cell is None:
                continue
            x = left + wide * column
            corners = [(x + 1, y + 1), (x + wide - 1, y + 1), (x + wide - 1, y + high - 1), (x + 1, y + high - 1)]
            # Never quite opaque: the words of the cell are written over it.
            shapes.append(Area(corners, chart.role, 0.65 * cell.share))
            shapes.append(Line([*corners, corners[0]], "rule", 0.7))
            shapes.append(Text((x + wide / 2, y + high / 2 + size / 3), cell.words, "ink", "middle", size))
    # Enough columns share one label for the widest label to fit.
    every = max(1, math.ceil((8 + max(map(text_width, chart.columns))) / wide))
    most = max(3, int(every * wide / 7))
    for column in range(0, len(chart.columns), every):
        word = short(chart.columns[column], most)
        shapes.append(Text((left + wide * (column + 0.5), bottom + 16), word, anchor="middle"))
    shapes.append(Text(((left + chart.width_pixels) / 2, bottom + 34), chart.x.title, anchor="middle"))
    if chart.y.title:
        shapes.append(Text((12, 8 + (bottom - 8) / 2), chart.y.title, anchor="middle", angle=-90))
    return _drawing(chart, chart.width_pixels, bottom + 42, shapes)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if all(map(math.isfinite, point))]


def _left_of(axis: Axis, ticks: Sequence[Tick]) -> float:
    """How much room the words of the y axis need."""
    if not axis.is_shown:
        return 8.0
    return max(30.0, 12 + max((text_width(word) for _, word in ticks), default=0.0) + (18 if axis.title else 0))


def _below(axis: Axis) -> float:
    """How much room the words of the x axis need."""
    return 10.0 if not axis.is_shown else 24.0 + (_LINE + 3) * (axis.title.count("\n") + 1 if axis.title else 0)


def _scale(axis: Axis, ends: Point, places: Point) -> Scale:
    low, high = (math.log10(end) for end in ends) if axis.scale == "log" else ends
    # Pixels grow downwards, so the y axis passes (bottom, top).
    first, last = places[::-1] if axis.is_reversed else places
    factor = (last - first) / (high - low)

    def place(value: float) -> float:
        if axis.scale == "log":
            value = math.log10(value) if value > 0 else low
        return first + (value - low) * factor

    return place


def _ticks(axis: Axis, ends: Point) -> list[Tick]:
    if axis.ticks:
        return [tick for tick in axis.ticks if ends[0] <= tick[0] <= ends[1]]
    found = log_ticks(*ends) if axis.scale == "log" else linear_ticks(*ends)
    return list(zip(found, words(found), strict=True))
