"""The page of a format benchmark: the recommendation, two charts, the table, and the method.

The charts show quality against size and against speed, one dot per format with its 95% interval, and the Pareto front:
the formats that no other beats in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.records.export import FormatPrice, FormatTable, Spread
from luthier.core.system.files import replace_text
from luthier.ml.charts import figures
from luthier.ml.charts.figures import number
from luthier.ml.charts.page import Chart, page_environment
from luthier.ml.charts.spec import Axis, Note, Plot, Role, Series
from luthier.ml.charts.svg import report_chart
from luthier.ml.export.exporters.registry import format_of

_WIDTH: Final = 620
_HEIGHT: Final = 380
_MEGABYTE: Final = 1e6


def price_charts(table: FormatTable, title_of: Callable[[str], str]) -> list[Chart]:
    """The charts of quality against size, and against generation speed.

    Args:
        table: the measurements.
        title_of: gives the heading of a metric.
    """
    return [report_chart(chart) for chart in price_plots(table, title_of)]


def write_price_charts(folder: Path, table: FormatTable, title_of: Callable[[str], str], suffix: str) -> list[Path]:
    """Write the same charts as files into an existing folder.

    Args:
        folder: the target folder.
        table: the measurements.
        title_of: gives the heading of a metric.
        suffix: `.svg` or `.png`.
    """
    from luthier.ml.charts.svg import write_chart

    paths = []
    for chart in price_plots(table, title_of):
        paths.append(folder / f"{chart.key}{suffix}")
        write_chart(chart, paths[-1])
    return paths


def price_plots(table: FormatTable, title_of: Callable[[str], str]) -> list[Plot]:
    """The content of the charts: a dot for each evaluated format, and the line of the Pareto front."""
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
    # First, so that dots are drawn over the line.
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
    """Ticks at 1, 2, 5 and so on between the smallest and the largest value, as formats are within a decade or two."""
    steps = [factor * 10.0**power for power in range(-3, 9) for factor in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)]
    return [(step, f"{step:,.4g}") for step in steps if min(places) * 0.9 <= step <= max(places) * 1.1]


def _notes(prices: Sequence[FormatPrice], places: Sequence[float], values: Sequence[float]) -> list[Note]:
    """A name at each dot, alternately above and below along the axis, so that neighbours do not overlap."""
    order = sorted(range(len(prices)), key=lambda i: places[i])
    return [Note(places[i], values[i], prices[i].label, below=bool(n % 2)) for n, i in enumerate(order)]


def _place(price: FormatPrice, kind: str) -> float:
    if kind == "size":
        return price.num_bytes / _MEGABYTE
    assert price.new_tokens_per_second is not None
    return price.new_tokens_per_second.median


def _role(price: FormatPrice) -> Role:
    return "base" if price.format is None else format_of(price.format).chart_role


TEMPLATES: Final = Path(__file__).parent / "templates"
_NOTHING: Final = ("", "")


@dataclass(frozen=True, slots=True)
class Row:
    """One format in the table, as display text.

    Attributes:
        label: label of the format.
        runtime: name and version.
        mark: "recommended" or another judgement; empty if none.
        tone: CSS class of the mark's colour.
        size, memory: in megabytes, with a note for each.
        prompt_speed, new_speed: tokens per second, with their range.
        quality, perplexity: values with 95% intervals.
        difference: difference to the source, with interval and verdict.
        why: reasons against the format.
    """

    label: str
    runtime: str
    mark: str
    tone: str
    size: tuple[str, str] = _NOTHING
    memory: tuple[str, str] = _NOTHING
    prompt_speed: tuple[str, str] = _NOTHING
    new_speed: tuple[str, str] = _NOTHING
    quality: tuple[str, str] = _NOTHING
    perplexity: tuple[str, str] = _NOTHING
    difference: tuple[str, str] = _NOTHING
    why: str = ""


def render_formats(table: FormatTable, title_of: Callable[[str], str]) -> str:
    """The page as one self-contained HTML document.

    Args:
        table: the measurements.
        title_of: gives the heading of a metric.
    """
    environment = page_environment(TEMPLATES)
    measured = [p for p in table.prices if p.quality is not None and p.format is not None]
    return environment.get_template("formats.html.j2").render(
        table=table,
        headline=_headline(measured),
        heading=title_of(table.metric),
        rows=[format_row(price, table) for price in table.prices],
        charts=price_charts(table, title_of),
        duration=figures.duration(table.seconds),
        data_name=Path(table.data_file).name,
    )


def write_format_page(path: Path, table: FormatTable, title_of: Callable[[str], str]) -> Path:
    """Write the page to `path` atomically.

    Raises:
        StorageFullError: the disk is full.
    """
    replace_text(path, render_formats(table, title_of))
    return path


def format_row(price: FormatPrice, table: FormatTable) -> Row:
    """One row of the table."""
    marks = {True: ("recommended", "good"), False: ("not recommended for this model", "bad"), None: ("", "quiet")}
    mark, tone = marks[price.is_recommended] if price.format is not None else ("", "quiet")
    if price.status != "measured":
        mark, tone = price.status, "open"
    if price.quality is None:
        return Row(label=price.label, runtime="", mark=mark, tone=tone, why=price.reason)
    found = price.quality.metrics[table.metric]
    # Only as many digits as the interval supports.
    decimals = figures.decimals_for(found.low, found.high)
    perplexity = price.quality.metrics.get("perplexity")
    change = next((c for c in price.comparisons if c.metric == table.metric), None)
    difference = _NOTHING
    if change is not None:
        places = figures.decimals_for(change.low, change.high)
        ends = f"[{figures.signed(change.low, places)}, {figures.signed(change.high, places)}]"
        difference = (figures.signed(change.difference, places), f"{ends}, {change.verdict}")
    idle = f"{price.idle_memory_bytes / 1e6:,.0f} before the model is loaded"
    return Row(
        label=price.label,
        runtime=price.runtime,
        mark=mark,
        tone=tone,
        size=(f"{price.num_bytes / 1e6:,.0f}", ""),
        memory=(f"{price.peak_memory_bytes / 1e6:,.0f}", idle),
        prompt_speed=_spread(price.prompt_tokens_per_second),
        new_speed=_spread(price.new_tokens_per_second),
        quality=(figures.number(found.value, decimals), figures.interval(found.low, found.high, decimals)),
        perplexity=(
            (f"{perplexity.value:.4g}", f"[{perplexity.low:.4g}, {perplexity.high:.4g}]") if perplexity else _NOTHING
        ),
        difference=difference,
        why="; ".join(price.losses),
    )


def _spread(found: Spread | None) -> tuple[str, str]:
    if found is None:
        return _NOTHING
    return figures.speed(found.median), f"{figures.speed(found.low)} to {figures.speed(found.high)}"


def _headline(measured: list[FormatPrice]) -> str:
    good = [p for p in measured if p.is_recommended]
    if not measured:
        return "No format could be measured."
    if not good:
        return "Every format that was measured loses quality beyond doubt."
    smallest = min(good, key=lambda p: p.num_bytes)
    bad = [p.label for p in measured if not p.is_recommended]
    text = f"The smallest format without a distinguishable loss is {smallest.label}, {smallest.num_bytes / 1e6:,.0f} MB"
    return f"{text}; not recommended: {', '.join(bad)}." if bad else f"{text}."


def pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """For each item, whether no other is at least as inexpensive and as good, and better in one of them.

    Equal items are all on the front.

    Args:
        costs: smaller is better.
        qualities: larger is better, one for each cost.
    """
    points = list(zip(costs, qualities, strict=True))
    return [
        # `other != point` keeps equal items on the front; with `<=` and `>=` it means better in at least one.
        not any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)
        for point in points
    ]
