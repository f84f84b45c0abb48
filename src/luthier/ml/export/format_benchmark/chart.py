"""Quality against size and against speed: a dot a format with its 95% interval, and the front of those none beats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from luthier.core.records.format_table import FormatPrice, FormatTable
from luthier.ml.charts.figures import number
from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import BASE, INK, MUTED, OTHERS, TUNED, canvas, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH: Final = 620
_HEIGHT: Final = 380
_MEGABYTE: Final = 1e6
# As fractions of the axes: within so much of each other two names would meet; a line of text is so high.
_WIDTH_OF_NAME: Final = 0.17
_LINE: Final = 0.05
_AXES_POINTS: Final = 240  # about how high the axes are

Draw = Callable[["Figure", str, str, str], None]


def price_charts(table: FormatTable, title_of: Callable[[str], str]) -> list[Chart]:
    """Quality against size, and against the speed of new tokens. title_of: metric -> its heading."""
    found: list[Chart] = []

    def keep(figure: Figure, name: str, title: str, words: str) -> None:
        svg = inline_svg(figure, name=name, title=title, description=words)
        found.append(Chart(title, _caption(name), svg))

    draw_charts(table, title_of, keep)
    return found


def write_price_charts(folder: Path, table: FormatTable, title_of: Callable[[str], str], suffix: str) -> list[Path]:
    """The same charts as files in an existing folder. suffix: `.svg` or `.png`."""
    from luthier.ml.charts.chart_file import write_chart

    paths: list[Path] = []

    def keep(figure: Figure, name: str, title: str, words: str) -> None:
        paths.append(folder / f"{name}{suffix}")
        write_chart(figure, paths[-1], name=name, title=title, description=words)

    draw_charts(table, title_of, keep)
    return paths


def draw_charts(table: FormatTable, title_of: Callable[[str], str], keep: Draw) -> None:
    """Draw each chart and hand it on with its name, title and words."""
    measured = [p for p in table.prices if p.quality is not None]
    heading = title_of(table.metric)
    timed = [p for p in measured if p.new_tokens_per_second is not None]
    _draw(table, measured, "size", f"{heading} against size", "megabytes on disk", heading, keep)
    if timed:
        _draw(table, timed, "speed", f"{heading} against speed", "new tokens a second, one request", heading, keep)


def _caption(name: str) -> str:
    good = "left" if name.endswith("size") else "right"
    return (
        f"Best are above and to the {good}. The line joins the formats that none beats in both; open dots have lost "
        "quality beyond doubt. Whiskers: 95% intervals of each alone; the table has the paired differences, which are "
        "much surer."
    )


def _draw(
    table: FormatTable, prices: Sequence[FormatPrice], kind: str, title: str, unit: str, heading: str, keep: Draw
) -> None:
    places = [_place(price, kind) for price in prices]
    figures = [price.quality.metrics[table.metric] for price in prices if price.quality is not None]
    with canvas(_WIDTH, _HEIGHT) as (figure, axes):
        front = sorted(
            (place, found.value)
            for place, found, price in zip(places, figures, prices, strict=True)
            if (price.is_on_front_size if kind == "size" else price.is_on_front_speed)
        )
        axes.plot([x for x, _ in front], [y for _, y in front], color=MUTED, lw=1.2, ls=(0, (4, 3)), zorder=1)
        for place, found, price in zip(places, figures, prices, strict=True):
            colour = _colour(price)
            axes.plot([place, place], [found.low, found.high], color=colour, lw=1.1, alpha=0.55, zorder=2)
            face = "none" if price.is_recommended is False else colour
            axes.plot(place, found.value, "o", color=colour, markerfacecolor=face, ms=8, mew=1.8, zorder=3)
        axes.set_xscale("log")
        axes.margins(x=0.14, y=0.12)
        _finish(axes, unit, f"{heading}, {figures[0].unit}")
        if not figures[0].higher_is_better:
            axes.invert_yaxis()
        _label(axes, prices, places, [found.value for found in figures])
        words = "; ".join(
            f"{p.label} {number(x, 1)} {unit}, {found.value:.4g}"
            for p, x, found in zip(prices, places, figures, strict=True)
        )
        keep(figure, f"formats-{kind}", title, f"{words}.")


def _finish(axes: Axes, unit: str, quality: str) -> None:
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.grid(axis="y")
    axes.set_xlabel(unit)
    axes.set_ylabel(quality)


def _label(axes: Axes, prices: Sequence[FormatPrice], places: Sequence[float], values: Sequence[float]) -> None:
    """A name beside each dot, on the inner side of it; of dots that lie together the names stand one above another."""
    # as fractions of the axes: their final size is not known before all is drawn
    left, right = (math.log(end) for end in axes.get_xlim())
    bottom, top = sorted(axes.get_ylim())
    taken: list[tuple[float, float]] = []
    for i in sorted(range(len(prices)), key=lambda i: (-values[i], places[i])):
        x, y = (math.log(places[i]) - left) / (right - left), (values[i] - bottom) / (top - bottom)
        side, height = (-1 if x > 1 - _WIDTH_OF_NAME else 1), y + _LINE
        middle = x + side * _WIDTH_OF_NAME / 2
        while any(abs(middle - other) < _WIDTH_OF_NAME and abs(height - line) < _LINE for other, line in taken):
            height += _LINE
        taken.append((middle, height))
        axes.annotate(
            prices[i].label,
            (places[i], values[i]),
            xytext=(7 * side, (height - y) * _AXES_POINTS),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            color=INK,
            zorder=4,
        )


def _place(price: FormatPrice, kind: str) -> float:
    if kind == "size":
        return price.num_bytes / _MEGABYTE
    assert price.new_tokens_per_second is not None
    return price.new_tokens_per_second.median


def _colour(price: FormatPrice) -> str:
    runtimes = {None: BASE, "merged": BASE, "gguf": TUNED, "onnx": OTHERS[0], "executorch": OTHERS[1]}
    return runtimes.get(price.format, OTHERS[2])
