"""The pictures of a case: tornado, money over time, ways side by side, and how the draws fall."""

from __future__ import annotations

import textwrap
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from luthier.core.results.worth_result import Bar, Priced, WorthResult
from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import BASE, INK, MUTED, OTHERS, PAPER, RULE, TUNED, canvas, inline_svg
from luthier.ml.planning.roi import words

_WIDTH: Final = 500
_MOST_BARS: Final = 10
_LEAST_SWING: Final = 0.01
_NAME_WIDTH: Final = 22


def worth_charts(result: WorthResult) -> list[Chart]:
    """All charts in which there is something to see, in the order of the page."""
    drawn = [months_chart(result), ways_chart(result)]
    if result.tornado:
        drawn.insert(0, tornado_chart(result))
    if len([count for count in result.histogram.counts if count]) > 1:
        drawn.append(draws_chart(result))
    return drawn


def tornado_chart(result: WorthResult) -> Chart:
    """What the value hangs on: each input from its low to its high, the others typical, the widest bar on top."""
    widest, currency = result.tornado[0].swing, result.case.currency
    bars = [bar for bar in result.tornado if bar.swing >= _LEAST_SWING * widest][:_MOST_BARS]
    typical = result.tuned.value.typical
    with canvas(_WIDTH, 64 + 42 * len(bars)) as (figure, axes):
        ends = [end for bar in bars for end in (bar.value_at_low, bar.value_at_high)]
        for place, bar in enumerate(bars):
            _tornado_bar(axes, bar, place, typical, currency)
        axes.axvline(typical, color=INK, lw=1.0)
        if min(ends) < 0 < max(ends):
            axes.axvline(0, color=MUTED, lw=1.0, ls=(0, (3, 3)))
        reach = max(ends) - min(ends)
        axes.set_xlim(min(ends) - 0.2 * reach, max(ends) + 0.2 * reach)
        axes.set_ylim(len(bars) - 0.4, -0.85)
        axes.set_yticks([])
        _money_axis(axes, f"worth in {words.months(float(result.case.horizon_months))}, {currency}")
        most = bars[0]
        low, high = (words.money(value, currency) for value in sorted((most.value_at_low, most.value_at_high)))
        rest = f" The {len(bars)} widest of {len(result.tornado)} are drawn." if len(result.tornado) > len(bars) else ""
        text = (
            f"What matters most is {most.title}: between its low and its high the value goes from {low} to {high}, all "
            f"else typical. Grey: the input at its low; coloured: at its high. The line stands at "
            f"{words.money(typical, currency)}, all typical.{rest}"
        )
        svg = inline_svg(figure, name="chart-tornado", title="What it hangs on", description=text)
    return Chart("What it hangs on", text, svg)


def _tornado_bar(axes: Axes, bar: Bar, place: int, typical: float, currency: str) -> None:
    for value, colour in ((bar.value_at_low, BASE), (bar.value_at_high, TUNED)):
        axes.barh(place + 0.12, value - typical, left=typical, height=0.4, color=colour)
    sides = sorted(((bar.value_at_low, bar.low), (bar.value_at_high, bar.high)))
    for (value, given), align, shift in zip(sides, ("right", "left"), (-4, 4), strict=True):
        text = words.of_kind(given, bar.kind, currency)
        axes.annotate(
            text, (value, place + 0.12), (shift, 0), textcoords="offset points", ha=align, va="center", color=MUTED
        )
    axes.annotate(
        bar.title[:1].upper() + bar.title[1:],
        (0.0, place - 0.3),
        xycoords=("axes fraction", "data"),
        ha="left",
        va="center",
        color=INK,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.75},
    )


def months_chart(result: WorthResult) -> Chart:
    """What has come together month by month, with the band that holds 95% of the draws."""
    currency, months = result.case.currency, [month.month for month in result.months]
    with canvas(_WIDTH, 280) as (figure, axes):
        lows, highs = [month.low for month in result.months], [month.high for month in result.months]
        axes.fill_between(months, lows, highs, color=TUNED, alpha=0.2, lw=0)
        axes.plot(months, [month.typical for month in result.months], color=TUNED, lw=2)
        axes.axhline(0, color=MUTED, lw=1.0)
        back = result.tuned.payback_months.typical
        if back is not None and 0 < back <= months[-1]:
            axes.plot(back, 0, "o", ms=8, mfc=PAPER, mec=TUNED, mew=1.8)
            late = back > 0.6 * months[-1]
            axes.annotate(
                f"paid back: {words.months(back)}",
                (back, 0),
                (-8 if late else 8, -13),
                textcoords="offset points",
                ha="right" if late else "left",
                color=INK,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.75},
            )
        if months[-1] > result.case.horizon_months:
            axes.axvline(result.case.horizon_months, color=RULE, lw=1.4)
        axes.set_xlim(0, months[-1])
        axes.set_xlabel("months from the start")
        axes.set_ylabel(currency)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.yaxis.set_major_formatter(_sums(axes.get_ylim()))
        axes.grid(axis="y")
        low, high = (words.months(end) for end in (result.tuned.payback_months.low, result.tuned.payback_months.high))
        text = f"Paid back: {words.months(back)}; 95% of the draws: {low} to {high}."
        text = text.replace("never to never", "never")
        svg = inline_svg(figure, name="chart-months", title="Money over time", description=text)
    return Chart("Money over time", f"{text} The band holds 95% of the draws of every month.", svg)


def ways_chart(result: WorthResult) -> Chart:
    """The tuned model beside plainer ways and doing nothing: a dot for the value, a whisker for its 95% interval."""
    ways, currency = [result.tuned, *result.alternatives], result.case.currency
    with canvas(_WIDTH, 70 + 40 * (len(ways) + 1)) as (figure, axes):
        for place, (way, colour) in enumerate(zip(ways, (TUNED, *OTHERS), strict=False)):
            axes.plot([way.value.low, way.value.high], [place, place], color=colour, lw=2.2, solid_capstyle="round")
            axes.plot(way.value.typical, place, "o", color=colour, ms=7)
            axes.annotate(
                words.three_digits(way.value.typical),
                (way.value.typical, place),
                (0, 6),
                textcoords="offset points",
                ha="center",
            )
        axes.plot(0, len(ways), "o", color=BASE, ms=7)
        axes.annotate("0", (0, len(ways)), (0, 6), textcoords="offset points", ha="center")
        axes.axvline(0, color=MUTED, lw=1.0, ls=(0, (3, 3)))
        axes.set_ylim(len(ways) + 0.5, -0.75)
        names = [*(textwrap.fill(way.title, _NAME_WIDTH) for way in ways), "Doing nothing"]
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.margins(x=0.12)
        axes.autoscale_view()
        _money_axis(axes, f"worth in {words.months(float(result.case.horizon_months))}, {currency}")
        text = "; ".join(_in_words(way, currency) for way in ways)
        svg = inline_svg(figure, name="chart-ways", title="Ways side by side", description=f"{text}.")
    priced = "The line is the interval that holds 95% of the draws."
    alone = "" if result.alternatives else " No plainer way was priced."
    return Chart("Ways side by side", f"{priced} Doing nothing is worth 0: all is counted against it.{alone}", svg)


def draws_chart(result: WorthResult) -> Chart:
    """How often the draws give which value: what pays in one colour, what does not in the other."""
    currency = result.case.currency
    edges, counts = np.asarray(result.histogram.edges), np.asarray(result.histogram.counts)
    chance = words.probability(result.tuned.probability_pays)
    with canvas(_WIDTH, 240) as (figure, axes):
        pays = (edges[:-1] + edges[1:]) / 2 > 0
        for mask, colour in ((pays, TUNED), (~pays, BASE)):
            axes.bar(edges[:-1][mask], counts[mask], width=np.diff(edges)[mask], align="edge", color=colour)
        axes.axvline(0, color=INK, lw=1.0)
        axes.set_yticks([])
        _money_axis(axes, f"worth in {words.months(float(result.case.horizon_months))}, {currency}")
        low, high = (words.money(end, currency) for end in (result.tuned.value.low, result.tuned.value.high))
        text = f"It pays in {chance} of {result.num_draws:,} draws; 95% of them lie between {low} and {high}."
        svg = inline_svg(figure, name="chart-draws", title="How the draws fall", description=text)
    return Chart("How the draws fall", text, svg)


def _in_words(way: Priced, currency: str) -> str:
    low, high = words.money(way.value.low, currency), words.money(way.value.high, currency)
    return f"{way.title} {words.money(way.value.typical, currency)}, {low} to {high}"


def _money_axis(axes: Axes, label: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(_sums(axes.get_xlim()))
    axes.grid(axis="x")
    axes.set_xlabel(label)


def _sums(limits: tuple[float, float]) -> FuncFormatter:
    """Sums on an axis, all in the unit that its largest one deserves: 2.5k, 10k; 0.5M, 3M."""
    largest = max(abs(limit) for limit in limits)
    fitting = ((size, letter) for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if largest >= 5 * size)
    unit, letter = next(fitting, (1.0, ""))
    return FuncFormatter(lambda value, _: f"{words.three_digits(value / unit)}{letter if value else ''}")
