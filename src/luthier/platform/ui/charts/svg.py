"""Charts drawn by the server: they stand in the page before any script runs, and stay where none does.

Colours are classes, so that light, dark and paper each show their own (`static/css/40-charts.css`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Final

from markupsafe import Markup, escape

from luthier.ml.charts.figures import rough
from luthier.ml.charts.thinning import thinned
from luthier.ml.charts.visible import visible
from luthier.platform.ui.charts.spec import Axis, Bars, Chart, Intervals, Parallel, Plot, Point, Series
from luthier.platform.ui.charts.ticks import linear_ticks, log_ticks, words

_WIDTH: Final = 560
_HEIGHT: Final = 260
_LEFT: Final = 58
_RIGHT: Final = 14
_TOP: Final = 12
_BOTTOM: Final = 44
_ROW: Final = 30
_LABELS: Final = 170
_NAMES: Final = 62
_MOST_POINTS: Final = 240
Scale = Callable[[float], float]


def drawn(chart: Chart) -> Markup:
    """The chart as an `<svg>`, named for screen readers by its title."""
    if isinstance(chart, Plot):
        return _plot(chart)
    if isinstance(chart, Intervals):
        return _intervals(chart)
    return _parallel(chart) if isinstance(chart, Parallel) else _bars(chart)


def _plot(chart: Plot) -> Markup:
    points = [p for series in chart.series for p in series.points if all(map(math.isfinite, p))]
    if not points:
        return _nothing(chart.title)
    x_ends, y_ends = _ends(chart.x, [p[0] for p in points]), _ends(chart.y, [p[1] for p in points])
    x = _scale(chart.x, x_ends, (_LEFT, _WIDTH - _RIGHT))
    y = _scale(chart.y, y_ends, (_HEIGHT - _BOTTOM, _TOP))
    parts = [_grid(chart, x_ends, y_ends, x, y)]
    for mark in chart.marks:
        if x_ends[0] <= mark.x <= x_ends[1]:
            at = x(mark.x)
            parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
            parts.append(f'<text class="tick" x="{at + 4:.1f}" y="{_TOP + 10}">{_text(mark.name)}</text>')
    parts += [_series(series, x, y) for series in chart.series]
    return _svg(chart.title, _WIDTH, _HEIGHT, parts)


def _series(series: Series, x: Scale, y: Scale) -> str:
    places = [(x(a), y(b)) for a, b in thinned([p for p in series.points if all(map(math.isfinite, p))], _MOST_POINTS)]
    if series.shape == "dots" or len(places) == 1:
        dots = (f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places)
        return f'<g class="dots {series.role}">{"".join(dots)}</g>'
    if series.shape == "steps":
        places = [p for (a, b), (c, _) in itertools.pairwise(places) for p in ((a, b), (c, b))] + places[-1:]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    return f'<polyline class="line {series.role}" points="{line}"/>'


def _grid(chart: Plot, x_ends: Point, y_ends: Point, x: Scale, y: Scale) -> str:
    parts = []
    across, up = _ticks(chart.x, x_ends), _ticks(chart.y, y_ends)
    for value, word in zip(up, words(up), strict=True):
        at = y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{at + 4:.1f}">{word}</text>')
    for value, word in zip(across, words(across), strict=True):
        parts.append(f'<text class="tick middle" x="{x(value):.1f}" y="{_HEIGHT - _BOTTOM + 16}">{word}</text>')
    parts.append(
        f'<text class="name middle" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}">{_text(chart.x.title)}</text>'
    )
    parts.append(
        f'<text class="name up" transform="translate(12 {_HEIGHT / 2 - 14}) rotate(-90)">{_text(chart.y.title)}</text>'
    )
    return "".join(parts)


def _intervals(chart: Intervals) -> Markup:
    rows = [row for row in chart.rows if all(map(math.isfinite, (row.value, row.low, row.high)))]
    if not rows:
        return _nothing(chart.title)
    values = [end for row in rows for end in (row.low, row.high)] + ([0.0] if chart.zero else [])
    ends, height = _ends(chart.x, values), _TOP + _ROW * len(rows) + _BOTTOM
    x = _scale(chart.x, ends, (_LABELS, _WIDTH - _RIGHT))
    parts = [_below(chart.x, ends, x, height)]
    if chart.zero:
        parts.append(f'<line class="mark" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
    for n, row in enumerate(rows):
        at = _TOP + _ROW * (n + 0.5)
        parts.append(f'<text class="label end" x="{_LABELS - 12}" y="{at + 4:.1f}">{_text(_short(row.name))}</text>')
        parts.append(
            f'<g class="estimate {row.role}"><line x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{at}" y2="{at}"/>'
            f'<circle cx="{x(row.value):.1f}" cy="{at}" r="4"/></g>'
        )
    return _svg(chart.title, _WIDTH, height, parts)


def _bars(chart: Bars) -> Markup:
    rows = [row for row in chart.rows if math.isfinite(row.value)]
    if not rows:
        return _nothing(chart.title)
    values = [0.0, *(row.value for row in rows)] + ([] if chart.limit is None else [chart.limit.x])
    ends, height = _ends(chart.x, values), _TOP + _ROW * len(rows) + _BOTTOM
    x = _scale(chart.x, ends, (_LABELS, _WIDTH - 84))
    parts = [_below(chart.x, ends, x, height)]
    for n, row in enumerate(rows):
        at = _TOP + _ROW * n + 6
        left, right = sorted((x(0), x(row.value)))
        parts.append(f'<text class="label end" x="{_LABELS - 12}" y="{at + 13:.1f}">{_text(_short(row.name))}</text>')
        parts.append(f'<rect class="bar {row.role}" x="{left:.1f}" y="{at}" width="{right - left:.1f}" height="18"/>')
        parts.append(
            f'<text class="tick" x="{right + 6:.1f}" y="{at + 13:.1f}">{_text(row.words or rough(row.value))}</text>'
        )
    if chart.limit is not None:
        limit = x(chart.limit.x)
        parts.append(f'<line class="mark" x1="{limit:.1f}" x2="{limit:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
    return _svg(chart.title, _WIDTH, height, parts)


def _parallel(chart: Parallel) -> Markup:
    if not chart.lines:
        return _nothing(chart.title)
    top, bottom = _NAMES, _HEIGHT - _BOTTOM / 2
    gap = (_WIDTH - 2 * _LEFT) / max(1, len(chart.columns) - 1)
    parts = []
    for n, column in enumerate(chart.columns):
        at = _LEFT + gap * n
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom:.1f}"/>')
        name = _text(_short(column.name, 16))
        parts.append(f'<text class="label" transform="translate({at:.1f} {top - 18}) rotate(-24)">{name}</text>')
        parts.append(f'<text class="tick middle" x="{at:.1f}" y="{top - 5}">{_text(_short(column.high, 9))}</text>')
        parts.append(
            f'<text class="tick middle" x="{at:.1f}" y="{bottom + 15:.1f}">{_text(_short(column.low, 9))}</text>'
        )
    for line in chart.lines:
        for piece in _pieces(line.heights):
            places = " ".join(f"{_LEFT + gap * n:.1f},{bottom - h * (bottom - top):.1f}" for n, h in piece)
            parts.append(f'<polyline class="line {line.role}" points="{places}"/>')
    return _svg(chart.title, _WIDTH, _HEIGHT, parts)


def _pieces(heights: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """The stretches of a line without a gap, each as (column, height)."""
    found: list[list[tuple[int, float]]] = [[]]
    for n, height in enumerate(heights):
        if height is None:
            found.append([])
        else:
            found[-1].append((n, height))
    return [piece for piece in found if piece]


def _below(axis: Axis, ends: Point, x: Scale, height: float) -> str:
    ticks, parts = _ticks(axis, ends), []
    for value, word in zip(ticks, words(ticks), strict=True):
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
        parts.append(f'<text class="tick middle" x="{at:.1f}" y="{height - _BOTTOM + 16}">{word}</text>')
    parts.append(f'<text class="name middle" x="{(_LABELS + _WIDTH) / 2}" y="{height - 8}">{_text(axis.title)}</text>')
    return "".join(parts)


def _ends(axis: Axis, values: Sequence[float]) -> Point:
    """What the axis spans: all values and the ends that must be seen, with a little room where they are one number."""
    known = [*values, *(end for end in (axis.low, axis.high) if end is not None)]
    if axis.scale == "log":
        known = [value for value in known if value > 0] or [1.0]
        low, high = min(known), max(known)
        return (low / 2, high * 2) if low == high else (low, high)
    low, high = min(known), max(known)
    if low == high:
        room = abs(low) / 10 or 1.0
        return low - room, high + room
    room = (high - low) * 0.04
    return (low if axis.low == low or low == 0 else low - room), (
        high if axis.high == high or high == 0 else high + room
    )


def _scale(axis: Axis, ends: Point, places: Point) -> Scale:
    low, high = (math.log10(end) for end in ends) if axis.scale == "log" else ends
    factor = (places[1] - places[0]) / (high - low)

    def place(value: float) -> float:
        if axis.scale == "log":
            value = math.log10(value) if value > 0 else low
        return places[0] + (value - low) * factor

    return place


def _ticks(axis: Axis, ends: Point) -> list[float]:
    return log_ticks(*ends) if axis.scale == "log" else linear_ticks(*ends)


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def _text(text: str) -> Markup:
    return escape(visible(text))


def _nothing(title: str) -> Markup:
    return Markup('<p class="muted no-chart">Nothing to draw yet for <em>{}</em>.</p>').format(visible(title))


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> Markup:
    head = f'<svg class="drawn" role="img" viewBox="0 0 {width} {height}" aria-label="{_text(title)}">'
    return Markup(head + "".join(parts) + "</svg>")  # noqa: S704 - every text in it went through `escape`
