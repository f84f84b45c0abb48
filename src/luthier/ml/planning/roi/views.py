"""What the page of a case shows, as short texts ready for the template."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Final

from luthier.core.results.roi_result import Part, Priced, RoiResult, Spread, SpreadOrNever
from luthier.ml.charts.fact import Fact
from luthier.ml.planning.roi import words
from luthier.ml.planning.roi.inputs import inputs_of

TONES: Final = {"yes": "good", "no": "bad", "open": "open"}
BADGES: Final = {"yes": "worth it", "no": "not worth it", "open": "not settled"}
CANNOT_KNOW: Final = (
    "Whether your ranges are right. They are the answer: a range that is too narrow gives an answer that is too sure.",
    "Inputs that move together. Each is drawn on its own, even where more calls would come with less value each.",
    "Prices next month, a better base model next month, and what your competitors do.",
    "What a wrong answer costs beyond the value of a right one: law, harm, trust. Put that into the value.",
    "What the work teaches you, and what else the data would be good for.",
)


@dataclass(frozen=True, slots=True)
class WayRow:
    """One way in the table of ways."""

    title: str
    gain: str
    serving: str
    once: str
    per_month: str
    value: str
    interval: str
    payback: str
    pays: str
    tuned_is_worth_more: str
    is_tuned: bool


def key_figures(result: RoiResult) -> list[Fact]:
    """The four figures that the issue of money comes down to."""
    currency, tuned = result.case.currency, result.tuned
    horizon = words.months(float(result.case.horizon_months))
    now = words.points(tuned.gain.typical)
    return [
        Fact(f"Worth in {horizon}", words.money(tuned.value.typical, currency), _money_interval(tuned.value, currency)),
        Fact("Paid back after", words.months(tuned.payback_months.typical), _months_interval(tuned.payback_months)),
        Fact(
            "Break-even accuracy gain",
            _gain(result.break_even_gain.typical),
            f"to match doing nothing; {now} in this case",
        ),
        Fact("Pays with a probability of", words.probability(tuned.probability_pays), f"{result.num_draws:,} draws"),
    ]


def way_rows(result: RoiResult) -> list[WayRow]:
    """The tuned model, plainer ways, and doing nothing."""
    currency = result.case.currency
    rows = [_way(way, currency) for way in (result.tuned, *result.alternatives)]
    nothing = "0"
    today = words.money(result.today_per_month.typical, currency)
    chance = words.probability(result.tuned.probability_pays)
    # Everything is counted against it, so its own figures are 0 and it has no interval.
    doing = WayRow("Doing nothing", nothing, today, nothing, nothing, nothing, "", "", "", chance, is_tuned=False)
    return [*rows, doing]


def part_rows(parts: tuple[Part, ...], currency: str) -> list[Fact]:
    """Parts of a sum that are not 0 throughout, with their intervals."""
    return [
        Fact(part.title, words.money(part.amount.typical, currency), _money_interval(part.amount, currency))
        for part in parts
        if (part.amount.low, part.amount.typical, part.amount.high) != (0, 0, 0)
    ]


def input_rows(result: RoiResult) -> list[tuple[str, str, str, str, str]]:
    """Every input: key, title, low, typical, high; one figure alone where there is no doubt."""
    currency = result.case.currency
    rows = []
    for one in inputs_of(result.case, result.measured).values():
        low, typical, high = (
            words.of_kind(value, one.kind, currency) for value in (one.range.low, one.range.typical, one.range.high)
        )
        rows.append(
            # An exact figure stands alone: three equal numbers would look like a range.
            (one.key, _start(one.title), "" if one.range.is_exact else low, typical, "" if one.range.is_exact else high)
        )
    return rows


def again(case_file: str, verdict: str | None, html: str) -> str:
    """The command that makes the page again."""
    return shlex.join(["luthier", "worth", case_file, *(["--verdict", verdict] if verdict else []), "--html", html])


def _way(way: Priced, currency: str) -> WayRow:
    more = way.probability_tuned_is_worth_more
    return WayRow(
        title=way.title,
        gain=words.points(way.gain.typical),
        serving=words.money(way.serving_per_month.typical, currency),
        once=words.money(way.once.typical, currency),
        per_month=words.money(way.per_month.typical, currency),
        value=words.money(way.value.typical, currency),
        interval=_money_interval(way.value, currency),
        payback=words.months(way.payback_months.typical),
        pays=words.probability(way.probability_pays),
        tuned_is_worth_more="" if more is None else words.probability(more),
        is_tuned=more is None,
    )


def _gain(value: float | None) -> str:
    return "none does it" if value is None else words.points(value)


def _money_interval(spread: Spread, currency: str) -> str:
    # Inputs without ranges give the same value in every draw.
    if spread.low == spread.high:
        return "no range given"
    return f"{words.three_digits(spread.low)} to {words.money(spread.high, currency)}"


def _months_interval(spread: SpreadOrNever) -> str:
    low, high = words.months(spread.low), words.months(spread.high)
    return "" if low == high else f"{low} to {high}"


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]
