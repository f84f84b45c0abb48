"""Yes, no or open, by a rule that is fixed before any figure is seen; and the words for it.

no      the chance that it pays is under 50%; or an alternative is worth more in over half of the draws; or the budget
        is overrun in over half of them
yes     it pays in at least 90% of the draws, is worth more than each alternative in at least 90%, and keeps the budget
        in at least 90%
open    anything between
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from luthier.core.results.roi import Case
from luthier.core.results.roi_result import Answer, Bar, BreakEven, Part, Priced
from luthier.ml.planning.roi import words

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


def headline(answer: Answer, case: Case, tuned: Priced, alternatives: Sequence[Priced], within: float | None) -> str:
    """The answer in one sentence, with the figure that decides."""
    value = f"{_money(tuned.value.typical, case)} in {_horizon(case)}"
    if answer == "yes":
        back = words.months(tuned.payback_months.typical)
        soon = "at once" if back.startswith("0 ") else f"after {back}"
        return f"Yes: it is worth {value}, and what was spent is back {soon}."
    if answer == "open":
        return f"Not settled: {_doubt(tuned, alternatives, within)}."
    # The plainest reason comes first: the others would be true as well, but miss the point.
    if case.calls.per_month.high == 0:
        return "No: there are no calls, so nothing can come back."
    if tuned.probability_pays < EVEN:
        return f"No: {_loss(case, tuned)}"
    if within is not None and within < EVEN:
        spent, budget = _money(tuned.once.typical, case), _money(case.budget.typical if case.budget else 0.0, case)
        return f"No: it would pay, but costs {spent} before it is in use; the budget is {budget}."
    rival = _rival(alternatives)
    better = _money(rival.value.typical, case)
    # Typical values and draws can disagree where a range is lopsided, and the draws decide.
    if tuned.value.typical > rival.value.typical:
        return f"No: {words.MIDDLE[rival.name]} is worth more in over half of the draws."
    return f"No: it is worth {value}, and {words.MIDDLE[rival.name]} is worth {better}."


def reasons(
    answer: Answer,
    case: Case,
    tuned: Priced,
    alternatives: Sequence[Priced],
    *,
    monthly: Sequence[Part],
    once: Sequence[Part],
) -> tuple[str, ...]:
    """Why: what a month brings and costs, what is spent once, how likely it pays, and what plainer ways are worth."""
    found = [_each_month(case, tuned, monthly), _spent(case, tuned, once)]
    # The sentence needs both ends: a probability alone says nothing of how much is at stake.
    low, high = (_money(end, case) for end in (tuned.value.low, tuned.value.high))
    found.append(
        f"It pays within {_horizon(case)} with a probability of {words.probability(tuned.probability_pays)}; "
        f"95% of the draws are worth {low} to {high}."
    )
    if case.months_until_launch.typical >= case.horizon_months:
        found.append(
            f"It is in use after {words.months(case.months_until_launch.typical)}: nothing can come back in "
            f"{_horizon(case)}."
        )
    # A gain that is surely below zero has been told by the figures above already.
    if tuned.gain.low <= 0 < tuned.gain.high:
        low, high = words.points(tuned.gain.low), words.points(tuned.gain.high)
        found.append(f"That it is more accurate at all is not certain: {low} to {high}.")
    for way in alternatives:
        chance = words.probability(way.probability_tuned_is_worth_more or 0.0)
        found.append(
            f"{_start(words.MIDDLE[way.name])}: worth {_money(way.value.typical, case)}; the tuned model is worth more "
            f"with a probability of {chance}."
        )
    if not alternatives and answer != "no":
        found.append("No plainer way was priced, so it is held against doing nothing alone.")
    return tuple(found)


def changes(answer: Answer, turning: Sequence[BreakEven], tornado: Sequence[Bar]) -> tuple[str, ...]:
    """What would have to be different, one thing at a time; of an open answer first what it hangs on most."""
    found = [one.sentence for one in turning]
    if answer == "open" and tornado:
        # The longest bar of the tornado comes first.
        found.insert(0, f"Know this better first, it moves the value most: {tornado[0].title}.")
    return tuple(found)


def _loss(case: Case, tuned: Priced) -> str:
    if tuned.per_month.typical <= 0:
        each = _money(-tuned.per_month.typical, case)
        lost = "brings nothing" if tuned.per_month.typical == 0 else f"costs {each} more than it brings"
        return f"each month {lost}, so what is spent never comes back."
    if tuned.value.typical <= 0:
        back = words.months(tuned.payback_months.typical)
        return (
            f"it takes {back} until what is spent is back, and {_horizon(case)} were asked about; "
            f"{_money(-tuned.value.typical, case)} are lost by then."
        )
    return (
        f"at typical values it is worth {_money(tuned.value.typical, case)}, but it pays in only "
        f"{words.probability(tuned.probability_pays)} of the draws."
    )


def _doubt(tuned: Priced, alternatives: Sequence[Priced], within: float | None) -> str:
    """The least sure of the things that a yes needs."""
    asked = f"where {SURE:.0%} is asked for"
    doubts = [(tuned.probability_pays, "it pays")]
    for way in alternatives:
        doubts.append((way.probability_tuned_is_worth_more or 0.0, f"it is worth more than {words.MIDDLE[way.name]}"))
    if within is not None:
        doubts.append((within, "it keeps the budget"))
    # Tuples are compared by their first part, the chance.
    chance, what = min(doubts)
    return f"{what} with a probability of {words.probability(chance)}, {asked}"


def _rival(alternatives: Sequence[Priced]) -> Priced:
    return min(alternatives, key=lambda way: way.probability_tuned_is_worth_more or 0.0)


def _each_month(case: Case, tuned: Priced, parts: Sequence[Part]) -> str:
    brings = [part for part in parts if part.amount.typical > 0]
    costs = [part for part in parts if part.amount.typical < 0]
    sums = [f"{verb} {_listed(some, case)}" for verb, some in (("brings", brings), ("costs", costs)) if some]
    left = _money(abs(tuned.per_month.typical), case)
    end = "are left" if tuned.per_month.typical >= 0 else "are lost"
    return f"Each month it {', and it '.join(sums) if sums else 'brings and costs nothing'}: {left} {end}."


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
    signed = {"serving": ("cheaper serving", "dearer serving"), "answers": (part.title, "fewer correct answers")}
    better, worse = signed.get(part.name, (part.title, part.title))
    title = better if part.amount.typical > 0 else worse
    return f"{title} ({_money(abs(part.amount.typical), case)})"


def _money(value: float, case: Case) -> str:
    return words.money(value, case.currency)


def _horizon(case: Case) -> str:
    return words.months(float(case.horizon_months))


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]
