"""The HTML page of a case: its texts and charts put into the template, everything escaped.

The charts are a tornado, money over time, the ways side by side, and how the draws fall.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from luthier.core.results.roi_result import Bar, Priced, RoiResult
from luthier.core.system.files import replace_text
from luthier.ml.charts import spec
from luthier.ml.charts.drawing import linear_ticks
from luthier.ml.charts.page import Chart, page_environment
from luthier.ml.charts.spec import OTHERS, Axis, Bars, IntervalRow, Intervals, Mark, Note, Plot, Role, Series
from luthier.ml.charts.svg import report_chart
from luthier.ml.planning.roi import answer, words

_WIDTH: Final = 500
_MAX_BARS: Final = 10
_MIN_SWING: Final = 0.01


def roi_charts(result: RoiResult) -> list[Chart]:
    """All charts of a report, drawn."""
    return [report_chart(chart) for chart in roi_specs(result)]


def roi_specs(result: RoiResult) -> list[spec.Chart]:
    """All charts in which there is something to see, in the order of the page."""
    found: list[spec.Chart] = [months_spec(result), ways_spec(result)]
    if result.tornado:
        found.insert(0, tornado_spec(result))
    # Without ranges all draws fall into one bin, and a single column says nothing.
    if len([count for count in result.histogram.counts if count]) > 1:
        found.append(draws_spec(result))
    return found


def tornado_spec(result: RoiResult) -> Bars:
    """What the value hangs on: each input from its low to its high, the others typical, the widest bar on top."""
    widest, currency = result.tornado[0].swing, result.case.currency
    # Bars of less than a hundredth of the widest would not be seen.
    bars = [bar for bar in result.tornado if bar.swing >= _MIN_SWING * widest][:_MAX_BARS]
    typical = result.tuned.value.typical
    most = bars[0]
    # Sorted, since of a cost the low input gives the high value.
    low, high = (words.money(value, currency) for value in sorted((most.value_at_low, most.value_at_high)))
    ending = f" The {len(bars)} widest of {len(result.tornado)} are drawn." if len(result.tornado) > len(bars) else ""
    text = (
        f"What matters most is {most.title}: between its low and its high the value goes from {low} to {high}, all "
        f"else typical. Grey: the input at its low; coloured: at its high. The line is at "
        f"{words.money(typical, currency)}, all typical.{ending}"
    )
    ends = [end for bar in bars for end in (bar.value_at_low, bar.value_at_high)]
    return Bars(
        "chart-tornado",
        "What it depends on",
        _money(f"worth in {words.months(float(result.case.horizon_months))}, {currency}", ends),
        [_tornado_bar(bar, typical, currency) for bar in bars],
        limit=Mark(typical, "", role="ink", is_dashed=False),
        caption=text,
        width_pixels=_WIDTH,
    )


def _tornado_bar(bar: Bar, typical: float, currency: str) -> spec.Bar:
    name = bar.title[:1].upper() + bar.title[1:]
    low, high = (words.of_kind(given, bar.kind, currency) for given in (bar.low, bar.high))
    return spec.Bar(name, bar.value_at_high, high, "tuned", typical, (bar.value_at_low, "base"), low)


def months_spec(result: RoiResult) -> Plot:
    """What has come together month by month, with the band that holds 95% of the draws."""
    currency, last = result.case.currency, result.months[-1].month
    notes, marks = [], [Mark(0.0, "", "y", is_dashed=False)]
    back = result.tuned.payback_months.typical
    if back is not None and 0 < back <= last:
        notes.append(Note(back, 0.0, f"paid back: {words.months(back)}", is_ringed=True, below=True))
    # The chart continues beyond the horizon where the money comes back later.
    if last > result.case.horizon_months:
        marks.append(Mark(result.case.horizon_months, "", role="rule", is_dashed=False))
    low, high = (words.months(end) for end in (result.tuned.payback_months.low, result.tuned.payback_months.high))
    span = low if low == high else f"{low} to {high}"
    text = f"Paid back: {words.months(back)}; 95% of the draws: {span}."
    points = [(float(month.month), month.typical) for month in result.months]
    band = [(month.low, month.high) for month in result.months]
    return Plot(
        "chart-months",
        "Money over time",
        Axis("months from the start", low=0.0, high=float(last)),
        _money(currency, [end for pair in band for end in pair]),
        [Series("", points, "tuned", intervals=band, radius_pixels=0.0)],
        marks=marks,
        notes=notes,
        caption=f"{text} The band holds 95% of the draws of every month.",
        description=text,
        width_pixels=_WIDTH,
        height_pixels=280,
    )


def ways_spec(result: RoiResult) -> Intervals:
    """The tuned model against simpler ways and doing nothing: a dot for the value, a whisker for its 95% interval."""
    ways, currency = [result.tuned, *result.alternatives], result.case.currency
    # A colour per way while there are colours; after that they are grey, with their names.
    quiet: Role = "quiet"
    roles = ("tuned", *OTHERS, *[quiet] * len(ways))
    rows = [
        IntervalRow(_row_name(way), value.typical, value.low, value.high, role, words.three_digits(value.typical))
        for way, value, role in ((way, way.value, role) for way, role in zip(ways, roles, strict=False))
    ]
    # As a separate row, so that the line at zero has a name.
    rows.append(IntervalRow("Doing nothing", 0.0, 0.0, 0.0, "base", "0"))
    ends = [end for row in rows for end in (row.low, row.high)]
    ending = "" if result.alternatives else " No simpler way was priced."
    return Intervals(
        "chart-ways",
        "Options side by side",
        _money(f"worth in {words.months(float(result.case.horizon_months))}, {currency}", ends),
        rows,
        zero=True,
        caption="The line is the interval that holds 95% of the draws. Doing nothing is worth 0: everything is "
        f"compared with it.{ending}",
        description=f"{'; '.join(_in_words(way, currency) for way in ways)}.",
        width_pixels=_WIDTH,
    )


def draws_spec(result: RoiResult) -> Plot:
    """How often the draws give which value: what pays in one colour, what does not in the other."""
    currency = result.case.currency
    edges, counts = np.asarray(result.histogram.edges), np.asarray(result.histogram.counts)
    chance = words.probability(result.tuned.probability_pays)
    # By the middle of each bin: a bin that spans zero belongs to the side of most of it.
    pays = (edges[:-1] + edges[1:]) / 2 > 0
    series = []
    stretches: tuple[tuple[np.ndarray, Role], ...] = ((pays, "tuned"), (~pays, "base"))
    for mask, role in stretches:
        if mask.any():  # one stretch each, since all that pays is right of all that does not
            points = spec.points_of(edges[:-1][mask], counts[mask])
            # The right edge of the last column, with height 0, closes it.
            points.append((float(edges[1:][mask][-1]), 0.0))
            series.append(Series("", points, role, "columns"))
    low, high = (words.money(end, currency) for end in (result.tuned.value.low, result.tuned.value.high))
    return Plot(
        "chart-draws",
        "Distribution of the draws",
        _money(f"worth in {words.months(float(result.case.horizon_months))}, {currency}", [edges[0], edges[-1]]),
        Axis("", low=0.0, is_shown=False),
        series,
        marks=[Mark(0.0, "", role="ink", is_dashed=False)],
        caption=f"It pays in {chance} of {result.num_draws:,} draws; 95% of them are between {low} and {high}.",
        width_pixels=_WIDTH,
        height_pixels=240,
    )


def _row_name(way: Priced) -> str:
    # The whole title of a baseline does not fit next to a row, and its name says enough.
    return f"{way.name[:1].upper()}{way.name[1:]}" if way.is_baseline else way.title


def _in_words(way: Priced, currency: str) -> str:
    low, high = words.money(way.value.low, currency), words.money(way.value.high, currency)
    return f"{way.title} {words.money(way.value.typical, currency)}, {low} to {high}"


def _money(name: str, values: Sequence[float]) -> Axis:
    """An axis of sums, all in the unit that the largest one deserves: 2.5k, 10k; 0.5M, 3M."""
    low, high = float(min(values)), float(max(values))
    largest = max(abs(low), abs(high))
    fitting = ((size, letter) for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if largest >= 5 * size)
    unit, letter = next(fitting, (1.0, ""))
    room = 0.04 * (high - low)  # the frame is a little wider than its values
    ticks = [
        (tick, f"{words.three_digits(tick / unit)}{letter if tick else ''}")
        for tick in linear_ticks(low - room, high + room)
    ]
    return Axis(name, ticks=ticks)


TEMPLATES: Final = Path(__file__).parent / "templates"


def render_roi(result: RoiResult, *, case: Sequence[str], verdict: str | None = None, html: str = "worth.html") -> str:
    """The page as one HTML document that refers to nothing outside itself. The same arguments give the same bytes.

    Args:
        result: the answer.
        case: of the command that makes the page again, its words for the case.
        verdict: of the same command; None without one.
        html: of the same command: where the page goes.
    """
    environment = page_environment(TEMPLATES)
    currency = result.case.currency
    return environment.get_template("worth.html.j2").render(
        result=result,
        case=result.case,
        badge=answer.BADGES[result.answer],
        tone=answer.TONES[result.answer],
        against=result.break_evens[0].against,
        key_figures=answer.key_figures(result),
        charts=roi_charts(result),
        ways=answer.way_rows(result),
        monthly=answer.part_rows(result.monthly_parts, currency),
        once=answer.part_rows(result.once_parts, currency),
        inputs=answer.input_rows(result),
        cannot_know=answer.CANNOT_KNOW,
        command=answer.again(case, verdict, html),
        versions={name: version(name) for name in ("luthier", "numpy", "scipy")}
        | {"python": platform.python_version()},
    )


def write_roi_report(path: Path, result: RoiResult, *, case: Sequence[str], verdict: str | None = None) -> Path:
    """Write the page to `path`, whole or not at all, and return it. Makes missing folders.

    Raises:
        StorageFullError: the disk is full.
    """
    page = render_roi(result, case=case, verdict=verdict, html=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page)
    return path
