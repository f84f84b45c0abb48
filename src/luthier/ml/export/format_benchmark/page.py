"""The page of a table of formats: what is recommended, two pictures, the table, and how it was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.records.format_table import FormatPrice, FormatTable, Spread
from luthier.ml.charts import figures
from luthier.ml.charts.page import page_environment, replace_text
from luthier.ml.export.format_benchmark.chart import price_charts

TEMPLATES: Final = Path(__file__).parent / "templates"
_NOTHING: Final = ("", "")


@dataclass(frozen=True, slots=True)
class Row:
    """One format as the table shows it: ready text.

    Attributes:
        label: of the format.
        runtime: name and version.
        mark: "recommended" or another judgement; empty for none.
        tone: class of the mark's colour.
        size, memory: in megabytes, with the small print beside each.
        prompt_speed, new_speed: tokens a second, with their range.
        quality, perplexity: with their 95% intervals.
        difference: to the source, with its interval and verdict.
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
    """The page as one HTML document that refers to nothing outside itself.

    Args:
        table: what was measured.
        title_of: heading of a metric.
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
    """Write the page to `path`, whole or not at all.

    Raises:
        StorageFullError: the disk is full.
    """
    replace_text(path, render_formats(table, title_of))
    return path


def format_row(price: FormatPrice, table: FormatTable) -> Row:
    """One line of the table."""
    marks = {True: ("recommended", "good"), False: ("not recommended for this model", "bad"), None: ("", "quiet")}
    mark, tone = marks[price.is_recommended] if price.format is not None else ("", "quiet")
    if price.status != "measured":
        mark, tone = price.status, "open"
    if price.quality is None:
        return Row(label=price.label, runtime="", mark=mark, tone=tone, why=price.reason)
    found = price.quality.metrics[table.metric]
    # As many digits as the interval supports, no more.
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
    text = (
        f"The smallest format without a loss that can be told is {smallest.label}, {smallest.num_bytes / 1e6:,.0f} MB"
    )
    return f"{text}; not recommended: {', '.join(bad)}." if bad else f"{text}."
