"""The whole answer to a case: flows at typical values and over random draws, put side by side and into words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.results.roi import ALTERNATIVES, Case, MeasuredGains
from luthier.core.results.roi_result import (
    Bar,
    Histogram,
    Month,
    NotPriced,
    Part,
    Priced,
    RoiResult,
    Spread,
    SpreadOrNever,
)
from luthier.ml.planning.roi import answer as words_of
from luthier.ml.planning.roi.break_even import break_even_gain, break_evens
from luthier.ml.planning.roi.contradictions import check_case
from luthier.ml.planning.roi.flows import TUNED, Economy, Flow
from luthier.ml.planning.roi.inputs import DISTRIBUTION, Array, Input, draw, inputs_of, typical_values
from luthier.ml.planning.roi.notes import notes

NUM_DRAWS: Final = 10_000
_ENDS: Final = (0.025, 0.975)
_NUM_BINS: Final = 40
_MAX_MONTHS: Final = 60
TITLES: Final = {
    "tuned": "Tuned model",
    "better_prompt": "Better prompt",
    "few_shot": "Few-shot",
    "bigger_model": "Bigger model",
    "without_model": "Without a model",
}
PARTS: Final = {
    "preparation": "preparing data",
    "annotation": "annotating",
    "review": "reviewing",
    "training": "training",
    "evaluation": "evaluating",
    "answers": "more correct answers",
    "serving": "serving, against today's",
    "retraining": "retraining",
    "upkeep": "further upkeep",
}


def worth(case: Case, measured: MeasuredGains | None = None, *, sources: tuple[str, ...] = ()) -> RoiResult:
    """Is it worth it? The same arguments give the same answer.

    Every price must be there.

    Args:
        measured: gains of an evaluation, in place of assumed ones.
        sources: where prices come from that the case did not give, as notes.

    Raises:
        RequestError: figures contradict each other.
    """
    check_case(case, measured)
    inputs = inputs_of(case, measured)
    # All ways are computed from the same draws, so that their differences hold no noise of the drawing.
    economy, typical, draws = Economy(case, measured), typical_values(inputs), draw(inputs, NUM_DRAWS, case.seed)
    months = float(case.horizon_months)
    exact, drawn = economy.flow(TUNED, typical), economy.flow(TUNED, draws)
    tuned = _priced(TUNED, exact, drawn, case)
    # Kept draw by draw: below each alternative is compared with it within the same draw.
    worth_of_tuned = drawn.value(months)
    alternatives = tuple(
        _priced(name, economy.flow(name, typical), flow := economy.flow(name, draws), case).model_copy(
            update={"probability_tuned_is_worth_more": _chance(worth_of_tuned > flow.value(months))}
        )
        for name in economy.alternatives()
    )
    within = None if case.budget is None else _chance(drawn.spent <= draws["budget"])
    verdict = words_of.decide(tuned, alternatives, within)
    monthly, once = _parts(exact.monthly, drawn.monthly), _parts(exact.once, drawn.once)
    turning, tornado = break_evens(economy, typical, months), _tornado(economy, inputs, typical, months)
    return RoiResult(
        answer=verdict,
        headline=words_of.headline(verdict, case, tuned, alternatives, within),
        reasons=words_of.reasons(verdict, case, tuned, alternatives, monthly=monthly, once=once),
        changes=words_of.changes(verdict, turning, tornado),
        notes=(*notes(case, measured, economy, typical), *sources),
        case=case,
        measured=measured,
        today_per_month=spread(economy.today_per_month(typical), economy.today_per_month(draws)),
        tuned=tuned,
        probability_within_budget=within,
        once_parts=once,
        monthly_parts=monthly,
        alternatives=alternatives,
        not_priced=_not_priced(economy),
        break_even_gain=_maybe(break_even_gain(economy, typical, months), break_even_gain(economy, draws, months)),
        break_evens=turning,
        tornado=tornado,
        months=_months(exact, drawn, case),
        histogram=_histogram(worth_of_tuned),
        num_draws=NUM_DRAWS,
        distribution=DISTRIBUTION,
    )


def spread(typical: Array, draws: Array) -> Spread:
    """A figure at typical values with the mean and the 95% interval of its draws."""
    low, high = np.quantile(draws, _ENDS)
    return Spread(typical=float(typical), mean=float(np.mean(draws)), low=float(low), high=float(high))


def _priced(name: str, exact: Flow, drawn: Flow, case: Case) -> Priced:
    months = float(case.horizon_months)
    return Priced(
        name=name,
        title=TITLES[name],
        gain=spread(exact.gain, drawn.gain),
        serving_per_month=spread(exact.serving, drawn.serving),
        once=spread(exact.spent, drawn.spent),
        per_month=spread(exact.per_month, drawn.per_month),
        value=spread(exact.value(months), drawn.value(months)),
        payback_months=_maybe(exact.payback_months(), drawn.payback_months()),
        probability_pays=_chance(drawn.value(months) > 0),
    )


def _maybe(typical: Array, draws: Array) -> SpreadOrNever:
    """Never (infinite, or no number at all) is later than any month: it is at the high end of the draws."""
    filled = np.where(np.isfinite(draws), draws, np.inf)
    # Between a number and infinity there is nothing to interpolate: a draw itself is taken.
    low, high = np.quantile(filled, _ENDS, method="inverted_cdf")
    return SpreadOrNever(typical=_finite(typical), low=_finite(low), high=_finite(high))


def _finite(value: Array) -> float | None:
    return float(value) if math.isfinite(value) else None


def _chance(happens: NDArray[np.bool_]) -> float:
    return float(np.mean(happens))


def _parts(exact: Mapping[str, Array], drawn: Mapping[str, Array]) -> tuple[Part, ...]:
    return tuple(Part(name=name, title=PARTS[name], amount=spread(exact[name], drawn[name])) for name in exact)


def _tornado(
    economy: Economy, inputs: Mapping[str, Input], typical: Mapping[str, Array], months: float
) -> tuple[Bar, ...]:
    """Every input that is not exact and moves the value, the widest first.

    Source: Howard, "Decision Analysis: Practice and Promise", Management Science 34(6), 1988.
    """
    bars = []
    for key, one in inputs.items():
        if one.range.is_exact:
            continue
        low, high = (
            float(economy.flow(TUNED, {**typical, key: np.asarray(end)}).value(months))
            for end in (one.range.low, one.range.high)
        )
        bars.append(
            Bar(
                name=key,
                title=one.title,
                kind=one.kind,
                low=one.range.low,
                typical=one.range.typical,
                high=one.range.high,
                value_at_low=low,
                value_at_high=high,
            )
        )
    return tuple(sorted((bar for bar in bars if bar.swing > 0), key=lambda bar: (-bar.swing, bar.name)))


def _months(exact: Flow, drawn: Flow, case: Case) -> tuple[Month, ...]:
    """What has come together by each month: over the horizon, and on until it is paid back, five years at the most."""
    back = float(exact.payback_months())
    # A quarter beyond the payback, so that the line is seen to cross zero.
    last = max(case.horizon_months, min(_MAX_MONTHS, math.ceil(1.25 * back) if math.isfinite(back) else 0))
    found = []
    for month in range(last + 1):
        at = spread(exact.value(float(month)), drawn.value(float(month)))
        found.append(Month(month=month, typical=at.typical, low=at.low, high=at.high))
    return tuple(found)


def _histogram(values: Array) -> Histogram:
    low, high = float(values.min()), float(values.max())
    step = (high - low) / _NUM_BINS
    # Where some draws pay and others do not, 0 is an edge: no bin holds both kinds.
    around_zero = step * np.arange(math.floor(low / step), math.ceil(high / step) + 1) if low < 0 < high else None
    counts, edges = np.histogram(values, bins=_NUM_BINS if around_zero is None else around_zero)
    return Histogram(edges=tuple(float(edge) for edge in edges), counts=tuple(int(count) for count in counts))


def _not_priced(economy: Economy) -> tuple[NotPriced, ...]:
    known = economy.alternatives()
    needs = "alternatives.{}: what it would gain, and what it would cost"
    is_today = economy.measured is not None and economy.case.verdict.today == "few_shot"
    return tuple(
        NotPriced(name=name, title=TITLES[name], needs=needs.format(name))
        for name in ALTERNATIVES
        if name not in known and not (is_today and name == "few_shot")
    )
