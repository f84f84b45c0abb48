"""Quality against size and against speed: a dot a format with its 95% interval, and the front of those none beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from luthier.core.records.format_table import FormatPrice, FormatTable
from luthier.ml.charts.figures import number
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import Axis, Note, Plot, Role, Series
from luthier.ml.charts.svg import report_chart
from luthier.ml.export.exporters.registry import format_of

_WIDTH: Final = 620
_HEIGHT: Final = 380
_MEGABYTE: Final = 1e6


def price_charts(table: FormatTable, title_of: Callable[[str], str]) -> list[Chart]:
    """Quality against size, and against the speed of new tokens.

    Args:
        table: what was measured.
        title_of: heading of a metric.
    """
    return [report_chart(chart) for chart in price_plots(table, title_of)]


def write_price_charts(folder: Path, table: FormatTable, title_of: Callable[[str], str], suffix: str) -> list[Path]:
    """The same charts as files in an existing folder.

    Args:
        folder: where they are written.
        table: what was measured.
        title_of: heading of a metric.
        suffix: `.svg` or `.png`.
    """
    from luthier.ml.charts.chart_file import write_chart

    paths = []
    for chart in price_plots(table, title_of):
        paths.append(folder / f"{chart.key}{suffix}")
        write_chart(chart, paths[-1])
    return paths


def price_plots(table: FormatTable, title_of: Callable[[str], str]) -> list[Plot]:
    """What the charts show: a dot for each format that was judged, and the line of those that none beats."""
    measured = [p for p in table.prices if p.quality is not None]
    heading = title_of(table.metric)
    timed = [p for p in measured if p.new_tokens_per_second is not None]
    made = [_plot(table, measured, "size", f"{heading} against size", "megabytes on disk", heading)]
    if timed:
        unit = "new tokens a second, one request"
        made.append(_plot(table, timed, "speed", f"{heading} against speed", unit, heading))
    return made


def _caption(kind: str) -> str:
    good = "left" if kind == "size" else "right"
    return (
        f"Best are above and to the {good}. The line joins the formats that none beats in both; open dots have lost "
        "quality beyond doubt. Whiskers: 95% intervals of each alone; the table has the paired differences, which are "
        "much surer."
    )


def _plot(table: FormatTable, prices: Sequence[FormatPrice], kind: str, title: str, unit: str, heading: str) -> Plot:
    places = [_place(price, kind) for price in prices]
    figures = [price.quality.metrics[table.metric] for price in prices if price.quality is not None]
    front = sorted(
        (place, found.value)
        for place, found, price in zip(places, figures, prices, strict=True)
        if (price.is_on_front_size if kind == "size" else price.is_on_front_speed)
    )
    # First, so that the dots are drawn over the line.
    series = [Series("", front, "muted", is_dashed=True, radius_pixels=0.0)] if front else []
    for place, found, price in zip(places, figures, prices, strict=True):
        dot = Series(
            "",
            [(place, found.value)],
            _role(price),
            "dots",
            intervals=[(found.low, found.high)],
            is_open=price.is_recommended is False,
            radius_pixels=5.0,
        )
        series.append(dot)
    words = "; ".join(
        f"{p.label} {number(x, 1)} {unit}, {found.value:.4g}"
        for p, x, found in zip(prices, places, figures, strict=True)
    )
    return Plot(
        f"formats-{kind}",
        title,
        Axis(unit, scale="log", ticks=_ticks(places)),
        Axis(f"{heading}, {figures[0].unit}", is_reversed=not figures[0].higher_is_better),
        series,
        notes=_notes(prices, places, [found.value for found in figures]),
        caption=_caption(kind),
        description=f"{words}.",
        width_pixels=_WIDTH,
        height_pixels=_HEIGHT,
    )


def _ticks(places: Sequence[float]) -> list[tuple[float, str]]:
    """1, 2, 5 and so on between the smallest and the largest place, since formats lie within a decade or two."""
    steps = [factor * 10.0**power for power in range(-3, 9) for factor in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)]
    return [(step, f"{step:,.4g}") for step in steps if min(places) * 0.9 <= step <= max(places) * 1.1]


def _notes(prices: Sequence[FormatPrice], places: Sequence[float], values: Sequence[float]) -> list[Note]:
    """A name at each dot, by turns above and below it along the axis, so that neighbours do not meet."""
    order = sorted(range(len(prices)), key=lambda i: places[i])
    return [Note(places[i], values[i], prices[i].label, below=bool(n % 2)) for n, i in enumerate(order)]


def _place(price: FormatPrice, kind: str) -> float:
    if kind == "size":
        return price.num_bytes / _MEGABYTE
    assert price.new_tokens_per_second is not None
    return price.new_tokens_per_second.median


def _role(price: FormatPrice) -> Role:
    return "base" if price.format is None else format_of(price.format).chart_role
