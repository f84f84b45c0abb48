"""Charts of tasks: gains over the base, reliability, confusion, win rates, and length against score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from luthier.core.results.task_result import Confusion, ReliabilityBin
from luthier.ml.charts.figures import decimals_for, interval, number, signed
from luthier.ml.charts.metric_titles import metric_heading
from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import BASE, INK, MUTED, OTHERS, RULE, TUNED, canvas, inline_svg
from luthier.ml.evaluation.report.interval_chart import short_name
from luthier.ml.evaluation.task_view import Summary, TaskView

_WIDTH: Final = 460
_SQUARE: Final = 330
_MOST_LABELS: Final = 12
_MOST_POINTS: Final = 500
WIN_RATE: Final = "win_rate"


def gains_chart(found: Summary) -> Chart | None:
    """The difference in each task's own metric, candidate less base, turned so that right is better; fractions only."""
    rows = found.gains
    if not rows:
        return None
    with canvas(_WIDTH, 52 + 30 * len(rows)) as (figure, axes):
        axes.axvline(0, color=MUTED, lw=1)
        for place, (_, (value, low, high)) in enumerate(rows):
            colour = TUNED if low > 0 or high < 0 else BASE
            axes.plot([low, high], [place, place], color=colour, lw=2.2, solid_capstyle="round")
            axes.plot(value, place, "o", color=colour, ms=7)
        _rows_axis(axes, [f"{row.task.name}: {row.metric.title}" for row, _ in rows])
        words = "; ".join(f"{row.task.name} {signed(gain[0], 3)}" for row, gain in rows)
        title = f"Gain of {found.candidate} over {found.baseline}"
        svg = inline_svg(figure, name="chart-gains", title="Gain in each task", description=f"{title}: {words}.")
    caption = "Each task's own metric, with its 95% interval; right of zero is better, over zero tells nothing."
    return Chart("Gain in each task", caption, svg)


def task_charts(view: TaskView) -> list[Chart]:
    """What there is to draw of a task."""
    made = []
    if WIN_RATE in {row.name for row in view.metrics}:
        made.append(_win_rates(view))
    if view.reliability:
        made.append(_reliability(view))
    made += [_confusion(view, name, found) for name, found in view.confusions]
    if view.points:
        made.append(_lengths(view))
    return made


def _win_rates(view: TaskView) -> Chart:
    systems = [(one.name, one.metrics[WIN_RATE]) for one in view.task.systems if WIN_RATE in one.metrics]
    with canvas(_WIDTH, 52 + 34 * len(systems)) as (figure, axes):
        axes.axvline(0.5, color=MUTED, lw=1, ls=(0, (4, 3)))
        for place, (name, found) in enumerate(systems):
            colour = _colour(view, name)
            axes.plot([found.low, found.high], [place, place], color=colour, lw=2.2, solid_capstyle="round")
            axes.plot(found.value, place, "o", color=colour, ms=7)
        _rows_axis(axes, [name for name, _ in systems])
        parts = []
        for name, found in systems:
            decimals = decimals_for(found.low, found.high)
            parts.append(f"{name} {number(found.value, decimals)} {interval(found.low, found.high, decimals)}")
        text = f"Win rates: {'; '.join(parts)}."
        svg = inline_svg(figure, name=f"chart-wins-{view.task.name}", title="Win rates", description=text)
    return Chart("Win rates", "Won comparisons, ties as half, with 95% intervals; dashed: neither is better.", svg)


def _reliability(view: TaskView) -> Chart:
    with canvas(_SQUARE, _SQUARE) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (4, 3)))
        for name, bins in view.reliability:
            _draw_bins(axes, bins, _colour(view, name), name)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence")
        axes.set_ylabel("fraction right")
        axes.grid(axis="both")
        axes.legend(frameon=False, loc="upper left", labelcolor=MUTED, handlelength=1.4, borderaxespad=0.2)
        text = f"Reliability. {'; '.join(_bins_in_words(name, bins) for name, bins in view.reliability)}."
        svg = inline_svg(figure, name=f"chart-reliability-{view.task.name}", title="Reliability", description=text)
    caption = "How often it was right where it was so sure; on the dashed line it knows what it knows. Area: rows."
    return Chart("Reliability", caption, svg)


def _bins_in_words(name: str, bins: Sequence[ReliabilityBin]) -> str:
    told = [f"{b.confidence:.2f} said, {b.accuracy:.2f} right ({b.num_rows:,} rows)" for b in bins if b.num_rows]
    return f"{name}: {', '.join(told)}"


def _draw_bins(axes: Axes, bins: Sequence[ReliabilityBin], colour: str, name: str) -> None:
    filled = [one for one in bins if one.num_rows]
    most = max((one.num_rows for one in filled), default=1)
    x, y = [one.confidence for one in filled], [one.accuracy for one in filled]
    axes.plot(x, y, color=colour, lw=1.6, label=short_name(name))
    for one in filled:
        axes.plot(one.confidence, one.accuracy, "o", color=colour, ms=3 + 6 * (one.num_rows / most) ** 0.5)


def _confusion(view: TaskView, name: str, found: Confusion) -> Chart:
    labels, counts = found.labels[:_MOST_LABELS], found.counts[:_MOST_LABELS]
    columns = [*labels, "none"]
    size = 70 + 44 * max(len(columns), 3)
    with canvas(min(_WIDTH, size + 60), min(_WIDTH, 60 + 40 * len(labels))) as (figure, axes):
        for place, row in enumerate(counts):
            total = sum(row) or 1
            for column, count in enumerate([*row[: len(labels)], row[-1]]):
                corner = (column - 0.46, place - 0.46)
                axes.add_patch(
                    Rectangle(corner, 0.92, 0.92, fc=_colour(view, name), ec="none", alpha=0.7 * count / total)
                )
                axes.add_patch(Rectangle(corner, 0.92, 0.92, fc="none", ec=RULE, lw=0.6))
                axes.text(column, place, f"{count:,}", ha="center", va="center", color=INK)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [_short(label) for label in columns])
        axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("given")
        axes.set_ylabel("true")
        place = [one for one, _ in view.confusions].index(name)
        right = sum(row[at] for at, row in enumerate(found.counts))
        total = sum(map(sum, found.counts))
        text = f"Confusion of {name}: {right:,} of {total:,} right."
        if len(found.labels) > _MOST_LABELS:
            text += f" The first {_MOST_LABELS} of {len(found.labels):,} labels are drawn."
        svg = inline_svg(
            figure, name=f"chart-confusion-{view.task.name}-{place}", title=f"Confusion of {name}", description=text
        )
    return Chart(f"Confusion of {name}", f"{text} Darker: a larger part of its row; none: no label at all.", svg)


def _lengths(view: TaskView) -> Chart:
    heading = metric_heading(view.scored)
    with canvas(_WIDTH, 260) as (figure, axes):
        for name, points in view.points:
            x, y = np.array(points[:_MOST_POINTS]).T
            axes.plot(x, y, "o", color=_colour(view, name), ms=4, alpha=0.6, label=short_name(name))
        axes.set_xlabel("tokens of the answer")
        axes.set_ylabel(heading)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.legend(frameon=False, loc="best", labelcolor=MUTED, handlelength=1.0, borderaxespad=0.2)
        text = f"Length of answers against {heading}: {sum(len(points) for _, points in view.points):,} answers."
        svg = inline_svg(figure, name=f"chart-lengths-{view.task.name}", title="Length against score", description=text)
    caption = f"Each dot is an answer. Dots that rise to the right: {heading} goes with length, whatever was said."
    return Chart("Length against score", caption, svg)


def _rows_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.set_yticks(range(len(names)), [short_name(name) for name in names], linespacing=1.05)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="x")
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


def _colour(view: TaskView, name: str) -> str:
    if name == view.who.candidate:
        return TUNED
    if name == view.who.baseline:
        return BASE
    others = [one.name for one in view.task.systems if one.name not in (view.who.candidate, view.who.baseline)]
    return OTHERS[others.index(name) % len(OTHERS)]


def _short(label: str) -> str:
    return label if len(label) <= 12 else f"{label[:11]}…"
