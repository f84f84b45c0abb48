"""The answer to a case as text: the verdict by a fixed rule, its reasons and notes, and the texts of its page.

    no      the chance that it pays is under 50%; or an alternative is worth more in over half of the draws; or the
            budget is overrun in over half of them
    yes     it pays in at least 90% of the draws, is worth more than each alternative in at least 90%, and keeps the
            budget in at least 90%
    open    anything between

An alternative takes the place of the tuned model ("use that instead") where the answer is not yes, it is the one that
is worth most, pays in at least half of the draws, and the tuned model is worth more in under half of them; or in under
90% of them, if it is a baseline whose answers are not shown to be worse than those of the tuned model.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.results.roi import Case
from luthier.core.results.roi_result import (
    Answer,
    Bar,
    BreakEven,
    Part,
    Priced,
    RoiResult,
    Spread,
    SpreadOrNever,
)
from luthier.ml.charts import figures
from luthier.ml.charts.figures import Fact
from luthier.ml.charts.judged_rows import Tone
from luthier.ml.planning.roi import words
from luthier.ml.planning.roi.inputs import inputs_of

TONES: Final[Mapping[Answer, Tone]] = {"yes": "good", "no": "bad", "open": "open"}
BADGES: Final = {"yes": "worth it", "no": "not worth it", "open": "not settled"}
CANNOT_KNOW: Final = (
    "Whether your ranges are right. The answer follows from them: a range that is too narrow makes it too certain.",
    "Inputs that move together. Each is sampled on its own, even where more calls would mean less value per call.",
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
        *_over_best(result, now),
        Fact("Pays with a probability of", words.probability(tuned.probability_pays), f"{result.num_draws:,} draws"),
    ]


def _over_best(result: RoiResult, now: str) -> list[Fact]:
    best = next((way for way in result.alternatives if way.name == result.best_alternative), None)
    if best is None or result.break_even_gain_over_best is None:
        return []
    gain = _gain(result.break_even_gain_over_best.typical)
    return [Fact("Break-even with the best", gain, f"to match {best.phrase}; {now} in this case")]


def way_rows(result: RoiResult) -> list[WayRow]:
    """The tuned model, plainer ways, and doing nothing."""
    rows = [_way(way, result.case.currency) for way in (result.tuned, *result.alternatives)]
    nothing = "0"
    today = words.money(result.today_per_month.typical, result.case.currency)
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
            # An exact figure is shown alone: three equal numbers would look like a range.
            (one.key, _start(one.title), "" if one.range.is_exact else low, typical, "" if one.range.is_exact else high)
        )
    return rows


def again(case: Sequence[str], verdict: str | None, html: str) -> str:
    """The command that makes the page again."""
    return shlex.join(["luthier", "worth", *case, *(["--verdict", verdict] if verdict else []), "--html", html])


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


SURE: Final = 0.9
EVEN: Final = 0.5
_NUM_PARTS: Final = 2


def decide(tuned: Priced, alternatives: Sequence[Priced], within_budget: float | None) -> Answer:
    """The answer by the rule above."""
    chances = [tuned.probability_pays, *([] if within_budget is None else [within_budget])]
    chances += [way.probability_tuned_is_worth_more or 0.0 for way in alternatives]
    # The weakest condition decides: a yes needs all of them.
    if min(chances) < EVEN:
        return "no"
    return "yes" if min(chances) >= SURE else "open"


def use_instead(answer: Answer, alternatives: Sequence[Priced]) -> Priced | None:
    """The alternative to take in place of the tuned model, by the rule above; None where there is none."""
    best = max(alternatives, key=lambda way: way.value.typical, default=None)
    if answer == "yes" or best is None or best.value.typical <= 0 or best.probability_pays < EVEN:
        return None
    chance = best.probability_tuned_is_worth_more or 0.0
    is_as_good = best.tuned_is in ("worse", "not_distinguishable")
    return best if chance < EVEN or (is_as_good and chance < SURE) else None


def headline(answer: Answer, case: Case, tuned: Priced, alternatives: Sequence[Priced], within: float | None) -> str:
    """The answer in one sentence, with the figure that decides; and the baseline to use instead, where there is one."""
    text = _headline(answer, case, tuned, alternatives, within)
    best = use_instead(answer, alternatives)
    if best is None or not best.is_baseline:
        return text
    ending = "" if _money(best.value.typical, case) in text else f": it is worth {_money(best.value.typical, case)}"
    return f"{text} Use {best.phrase} instead{ending}."


def _headline(answer: Answer, case: Case, tuned: Priced, alternatives: Sequence[Priced], within: float | None) -> str:
    value = f"{_money(tuned.value.typical, case)} in {_horizon(case)}"
    if answer == "yes" and tuned.value.typical <= 0:
        # As where a typical value is at the low end of its range: the draws decide, and most of them are above it.
        chance = words.probability(tuned.probability_pays)
        return f"Yes: it pays in {chance} of the draws, though at typical values it is worth {value}."
    if answer == "yes":
        back = words.months(tuned.payback_months.typical)
        soon = "at once" if back.startswith("0 ") else f"after {back}"
        return f"Yes: it is worth {value}, and its cost is paid back {soon}."
    if answer == "open":
        return f"Not settled: {_doubt(tuned, alternatives, within)}."
    # The plainest reason comes first: the others would be true as well, but miss the point.
    if case.calls.per_month.high == 0:
        return "No: there are no calls, so nothing can be paid back."
    if tuned.probability_pays < EVEN:
        return f"No: {_loss(case, tuned)}"
    if within is not None and within < EVEN:
        spent, budget = _money(tuned.once.typical, case), _money(case.budget.typical if case.budget else 0.0, case)
        return f"No: it would pay, but costs {spent} before it is in use; the budget is {budget}."
    rival = _rival(alternatives)
    better = _money(rival.value.typical, case)
    # Typical values and draws can disagree where a range is lopsided, and the draws decide.
    if tuned.value.typical > rival.value.typical:
        return f"No: {rival.phrase} is worth more in over half of the draws."
    return f"No: it is worth {value}, and {rival.phrase} is worth {better}."


def reasons(
    answer: Answer,
    case: Case,
    tuned: Priced,
    alternatives: Sequence[Priced],
    *,
    monthly: Sequence[Part],
    once: Sequence[Part],
    alone: tuple[Spread, Spread] | None = None,
) -> tuple[str, ...]:
    """Why: what a month brings and costs, what is spent once, how likely it pays, and what plainer ways are worth."""
    found = [_each_month(case, tuned, monthly), _spent(case, tuned, once)]
    if alone is not None:
        share, accuracy = alone
        found.insert(
            0,
            f"It answers {_spread(share)} of cases alone, {_spread(accuracy)} of those correctly; the rest goes to "
            "people, or to the system that answers today."
            if share.high > 0
            else "It answers no case alone: all of them go to people, or to the system that answers today.",
        )
    # The sentence needs both ends: a probability alone does not say how much is at stake.
    low, high = (_money(end, case) for end in (tuned.value.low, tuned.value.high))
    found.append(
        f"It pays within {_horizon(case)} with a probability of {words.probability(tuned.probability_pays)}; "
        f"95% of the draws are worth {low} to {high}."
    )
    if case.months_until_launch.typical >= case.horizon_months:
        found.append(
            f"It is in use after {words.months(case.months_until_launch.typical)}: nothing can be paid back in "
            f"{_horizon(case)}."
        )
    # A gain that is surely below zero is already in the figures above.
    if tuned.gain.low <= 0 < tuned.gain.high:
        low, high = words.points(tuned.gain.low), words.points(tuned.gain.high)
        found.append(f"It is not certain that it is more accurate at all: {low} to {high}.")
    found += _of_alternatives(case, alternatives)
    if not alternatives and answer != "no":
        found.append("No simpler way was priced, so it is compared with doing nothing only.")
    return tuple(found)


def _spread(found: Spread) -> str:
    return f"{words.share(found.typical)} ({words.share(found.low)} to {words.share(found.high)})"


def _of_alternatives(case: Case, alternatives: Sequence[Priced]) -> Iterator[str]:
    """A sentence for each, except for irrelevant baselines: they share one."""
    baselines = [way for way in alternatives if way.is_baseline]
    best = max(baselines, key=lambda way: way.value.typical, default=None)
    beaten = []
    for way in alternatives:
        chance = way.probability_tuned_is_worth_more or 0.0
        if way.is_baseline and way is not best and chance >= SURE:
            beaten.append(f"{way.phrase} {_money(way.value.typical, case)}")
            continue
        # What may be empty is called an ending, as translations of pages know it.
        ending_time = (
            ""
            if way.seconds is None
            else f", which takes {figures.with_spaces(figures.duration(way.seconds))} to fit and answer"
        )
        ending_answers = _by_answers(way)
        yield (
            f"{_start(way.phrase)}{ending_time}: worth {_money(way.value.typical, case)}; the tuned model is worth "
            f"more with a probability of {words.probability(chance)}.{ending_answers}"
        )
    if beaten:
        yield f"Other baselines without a language model are worth less than the tuned model: {'; '.join(beaten)}."


def _by_answers(way: Priced) -> str:
    return {
        "worse": " Its answers are better than those of the tuned model.",
        "not_distinguishable": " That the tuned model answers better than it is not shown.",
    }.get(way.tuned_is or "", "")


def changes(answer: Answer, turning: Sequence[BreakEven], tornado: Sequence[Bar]) -> tuple[str, ...]:
    """What would have to be different, one thing at a time; of an open answer first what it hangs on most."""
    found = [one.sentence for one in turning]
    if answer == "open" and tornado:
        # The longest bar of the tornado comes first.
        found.insert(0, f"Learn more about this first, as it changes the value most: {tornado[0].title}.")
    return tuple(found)


def _loss(case: Case, tuned: Priced) -> str:
    if tuned.per_month.typical <= 0:
        each = _money(-tuned.per_month.typical, case)
        lost = "earns nothing" if tuned.per_month.typical == 0 else f"costs {each} more than it earns"
        return f"each month {lost}, so its cost is never paid back."
    if tuned.value.typical <= 0:
        back = words.months(tuned.payback_months.typical)
        return (
            f"it takes {back} until the cost is paid back, and the horizon is {_horizon(case)}; "
            f"{_money(-tuned.value.typical, case)} are lost by then."
        )
    return (
        f"at typical values it is worth {_money(tuned.value.typical, case)}, but it pays in only "
        f"{words.probability(tuned.probability_pays)} of the draws."
    )


def _doubt(tuned: Priced, alternatives: Sequence[Priced], within: float | None) -> str:
    """The least sure of the things that a yes needs."""
    asked = f"where {SURE:.0%} is required"
    doubts = [(tuned.probability_pays, "it pays")]
    for way in alternatives:
        doubts.append((way.probability_tuned_is_worth_more or 0.0, f"it is worth more than {way.phrase}"))
    if within is not None:
        doubts.append((within, "it keeps the budget"))
    # Tuples are compared by their first part, the chance.
    chance, what = min(doubts)
    return f"{what} with a probability of {words.below(chance, SURE)}, {asked}"


def _rival(alternatives: Sequence[Priced]) -> Priced:
    return min(alternatives, key=lambda way: way.probability_tuned_is_worth_more or 0.0)


def _each_month(case: Case, tuned: Priced, parts: Sequence[Part]) -> str:
    earns = [part for part in parts if part.amount.typical > 0]
    costs = [part for part in parts if part.amount.typical < 0]
    sums = [f"{verb} {_listed(some, case)}" for verb, some in (("earns", earns), ("costs", costs)) if some]
    left = _money(abs(tuned.per_month.typical), case)
    end = "are left" if tuned.per_month.typical >= 0 else "are lost"
    return f"Each month it {', and it '.join(sums) if sums else 'earns and costs nothing'}: {left} {end}."


def _spent(case: Case, tuned: Priced, parts: Sequence[Part]) -> str:
    if tuned.once.typical == 0:
        return "Nothing has to be spent before it is in use."
    # Parts without an amount may be among the largest where there are few.
    most = [part for part in _largest(parts) if part.amount.typical > 0]
    named = " and ".join(_named(part, case) for part in most)
    return f"Before it is in use {_money(tuned.once.typical, case)} are spent, most of it for {named}."


def _largest(parts: Sequence[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: -abs(part.amount.typical))[:_NUM_PARTS]


def _listed(parts: Sequence[Part], case: Case) -> str:
    """The largest parts with their sums, and the sum of the others, so that a reader can add them up."""
    shown = _largest(parts)
    # All parts here have one sign, so the sum of their sizes is the size of their sum.
    others = sum(abs(part.amount.typical) for part in parts if part not in shown)
    rest = [f"other things ({_money(others, case)})"] if others else []
    *first, last = [*(_named(part, case) for part in shown), *rest]
    return f"{', '.join(first)} and {last}" if first else last


def _named(part: Part, case: Case) -> str:
    # These two can be a gain or a cost, and need words for either.
    signed = {
        "serving": ("cheaper serving", "more expensive serving"),
        "answers": (part.title, "fewer correct answers"),
    }
    better, worse = signed.get(part.name, (part.title, part.title))
    title = better if part.amount.typical > 0 else worse
    return f"{title} ({_money(abs(part.amount.typical), case)})"


def _money(value: float, case: Case) -> str:
    return words.money(value, case.currency)


def _horizon(case: Case) -> str:
    return words.months(float(case.horizon_months))
