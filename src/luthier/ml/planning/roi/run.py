"""The whole answer to a case: flows at typical values and over random draws, and the break-even of each input.

At a break-even one input is moved, all others stay typical, until the tuned model is worth as much as doing nothing,
or as the best of the plain alternatives where that is worth more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from luthier.core.results.roi import ALTERNATIVES, Case
from luthier.core.results.roi_result import (
    Bar,
    BreakEven,
    Histogram,
    Kind,
    MeasuredGains,
    Month,
    NotPriced,
    Part,
    Priced,
    RoiResult,
    Spread,
    SpreadOrNever,
)
from luthier.ml.planning.roi import answer as words_of
from luthier.ml.planning.roi import words
from luthier.ml.planning.roi.contradictions import check_case
from luthier.ml.planning.roi.flows import ANSWERS, TUNED, Economy, Flow
from luthier.ml.planning.roi.inputs import (
    DISTRIBUTION,
    Array,
    Input,
    Values,
    draw,
    inputs_of,
    today_accuracy,
    typical_values,
)
from luthier.ml.planning.roi.notes import notes

CALLS: Final = "calls.per_month"
VALUE: Final = "calls.value_of_one_more_correct"
_MAX_TIMES: Final = 1e6
_NUM_STEPS: Final = 241


def break_even_gain(economy: Economy, values: Values, months: float, target: Array | float = 0.0) -> Array:
    """The accuracy gain at which the tuned model is worth `target`; NaN where none is.

    The value is a straight line in the gain, so this is exact. It may be negative: then savings alone pay.

    Args:
        economy: of the case.
        values: the draws of all inputs of the case, each [draws].
        months: the time over which the value is summed.
        target: in the currency of the case, one value or one for each draw.
    """
    flow = economy.flow(TUNED, values)
    used = np.maximum(0.0, months - flow.launch_months)
    slope = values[CALLS] * values[VALUE] * used
    rest = (flow.per_month - flow.monthly[ANSWERS]) * used - flow.spent
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(slope > 0, (target - rest) / slope, np.nan)


def best_alternative(economy: Economy, values: Values, months: float) -> tuple[str | None, float]:
    """The alternative that is worth most at these values, and how much; (None, 0) where none is worth more than 0."""
    found = {name: float(economy.flow(name, values).value(months)) for name in economy.names()}
    name = max(found, key=lambda one: found[one], default=None)
    return (name, found[name]) if name is not None and found[name] > 0 else (None, 0.0)


def break_evens(economy: Economy, values: Values, months: float) -> tuple[BreakEven, ...]:
    """The turning points of gain, calls, value of an answer and what is spent once, at typical values."""
    rival, target = best_alternative(economy, values, months)
    against = economy.phrase(rival) if rival else "doing nothing"
    flow, currency = economy.flow(TUNED, values), economy.case.currency

    def advantage(key: str) -> Callable[[float], float]:
        def at(value: float) -> float:
            moved = {**values, key: np.asarray(value)}
            # The input also moves the alternatives, so the rival is chosen again at each value.
            own = float(economy.flow(TUNED, moved).value(months))
            return own - best_alternative(economy, moved, months)[1]

        return at

    gain = float(break_even_gain(economy, values, months, target))
    ahead = float(flow.value(months)) - target
    # What is spent once counts one to one, so the margin is simply added.
    most = float(flow.spent) + ahead
    found = [
        _one("gain", "accuracy gain", "gain", float(flow.gain), None if np.isnan(gain) else gain, True, against),
        _moved(CALLS, "calls a month", "number", values, advantage(CALLS), against),
        _moved(VALUE, "value of one more correct answer", "money", values, advantage(VALUE), against),
        _one("once", "what is spent once", "money", float(flow.spent), most if most >= 0 else None, False, against),
    ]
    left = economy.gain_left(values)
    most_gain = 1.0 if left is None else float(left)
    return tuple(one.model_copy(update={"sentence": _sentence(one, currency, most_gain)}) for one in found)


def _moved(
    key: str, title: str, kind: Kind, values: Values, advantage: Callable[[float], float], against: str
) -> BreakEven:
    now = float(values[key])
    needed, at_least = _turning_point(advantage, now)
    return _one(key, title, kind, now, needed, at_least, against)


def _turning_point(advantage: Callable[[float], float], now: float) -> tuple[float | None, bool]:
    """The value nearest to `now` where the advantage changes its sign, and whether it must be at least that.

    Looked for on a grid of ratios from a millionth to a million times `now` (around 1 where that is 0), then narrowed.
    """
    middle = now if now > 0 else 1.0
    # The rival may change with the input, so the advantage may turn more than once: a grid finds each turn.
    grid = [0.0, *(middle * np.logspace(-np.log10(_MAX_TIMES), np.log10(_MAX_TIMES), _NUM_STEPS)).tolist()]
    heights = [advantage(value) for value in grid]
    turns = [
        (low, high, after > before)
        for low, high, before, after in zip(grid, grid[1:], heights, heights[1:], strict=False)
        if (before > 0) != (after > 0)
    ]
    if not turns:
        return None, True
    low, high, rises = min(turns, key=lambda turn: min(abs(turn[0] - now), abs(turn[1] - now)))
    # brentq needs a change of sign: an end that is a root already is returned.
    if advantage(high) == 0.0:
        return high, rises
    return float(low if advantage(low) == 0.0 else brentq(advantage, low, high)), rises


def _one(
    name: str, title: str, kind: Kind, now: float, needed: float | None, at_least: bool, against: str
) -> BreakEven:
    return BreakEven(
        name=name, title=title, kind=kind, now=now, needed=needed, at_least=at_least, against=against, sentence=""
    )


def _sentence(found: BreakEven, currency: str, most_gain: float) -> str:
    """`An accuracy gain of at least +8.3 points (now +3 points).`"""
    now = words.of_kind(found.now, found.kind, currency)
    if found.needed is None:
        nothing = {
            "gain": "No accuracy gain would do it: more correct answers are worth nothing here.",
            CALLS: "No number of calls a month changes the answer.",
            VALUE: "No value of one more correct answer changes the answer.",
            "once": "Even if nothing had to be spent at first, it would not be worth more.",
        }
        return nothing[found.name]
    if found.name == "gain":
        ending = " That is more than there is to gain." if found.needed > most_gain else ""
        return f"An accuracy gain of at least {words.points(found.needed)} (now {now}).{ending}"
    needed = words.of_kind(found.needed, found.kind, currency)
    bound = "at least" if found.at_least else "at most"
    openings = {
        CALLS: f"Calls: {bound} {needed} a month (now {now}).",
        VALUE: f"One more correct answer is worth {bound} {needed} (now {now}).",
        "once": f"Spent once: at most {needed} (now {now}).",
    }
    return openings[found.name]


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
        case: the figures.
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
    tuned = _priced(TUNED, exact, drawn, economy)
    # Kept draw by draw: below each alternative is compared with it within the same draw.
    worth_of_tuned = drawn.value(months)
    others = {name: economy.flow(name, draws) for name in economy.names()}
    alternatives = tuple(
        _priced(name, economy.flow(name, typical), flow, economy).model_copy(
            update={"probability_tuned_is_worth_more": _chance(worth_of_tuned > flow.value(months))}
        )
        for name, flow in others.items()
    )
    best, worth_of_best = best_alternative(economy, typical, months)
    within = None if case.budget is None else _chance(drawn.spent <= draws["budget"])
    verdict = words_of.decide(tuned, alternatives, within)
    monthly, once = _parts(exact.monthly, drawn.monthly), _parts(exact.once, drawn.once)
    turning, tornado = break_evens(economy, typical, months), _tornado(economy, inputs, typical, months)
    return RoiResult(
        answer=verdict,
        headline=words_of.headline(verdict, case, tuned, alternatives, within),
        reasons=words_of.reasons(
            verdict, case, tuned, alternatives, monthly=monthly, once=once, alone=_alone(economy, typical, draws)
        ),
        changes=words_of.changes(verdict, turning, tornado),
        notes=(*notes(case, measured, economy, typical), *sources),
        case=case,
        measured=measured,
        today_per_month=spread(economy.today_per_month(typical), economy.today_per_month(draws)),
        tuned=tuned,
        probability_within_budget=within,
        once_parts=once,
        monthly_parts=monthly,
        today_accuracy=today_accuracy(case, measured),
        alternatives=alternatives,
        best_alternative=best,
        use_instead=instead.name if (instead := words_of.use_instead(verdict, alternatives)) else None,
        not_priced=_not_priced(economy),
        break_even_gain=_maybe(break_even_gain(economy, typical, months), break_even_gain(economy, draws, months)),
        break_even_gain_over_best=_over_best(economy, typical, draws, worth_of_best, others),
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


def _alone(economy: Economy, typical: Values, draws: Values) -> tuple[Spread, Spread] | None:
    """Share and accuracy of what the tuned model answers alone; None where it answers everything."""
    exact, drawn = economy.answered_alone(TUNED, typical), economy.answered_alone(TUNED, draws)
    if exact is None or drawn is None:
        return None
    return spread(exact[0], drawn[0]), spread(exact[1], drawn[1])


def _over_best(
    economy: Economy, typical: Values, draws: Values, worth_of_best: float, others: Mapping[str, Flow]
) -> SpreadOrNever | None:
    """The gain at which the tuned model is worth as much as the best alternative, in each draw the best one of it.

    Never, where that is more than there is to gain over today's way.
    """
    if not others:
        return None
    months = float(economy.case.horizon_months)
    best = np.zeros(NUM_DRAWS)
    for flow in others.values():
        best = np.maximum(best, flow.value(months))

    def to_be_had(values: Values, target: Array | float) -> Array:
        gain, left = break_even_gain(economy, values, months, target), economy.gain_left(values)
        return np.where(gain > (1.0 if left is None else left), np.nan, gain)

    return _maybe(to_be_had(typical, worth_of_best), to_be_had(draws, best))


def _priced(name: str, exact: Flow, drawn: Flow, economy: Economy) -> Priced:
    months = float(economy.case.horizon_months)
    baseline = economy.baselines().get(name)
    return Priced(
        name=name,
        title=TITLES[name] if baseline is None else f"Without a language model: {name}",
        phrase=economy.phrase(name),
        is_baseline=baseline is not None,
        seconds=None if baseline is None else baseline.seconds,
        tuned_is=None if baseline is None else baseline.tuned_is,
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
    known = set(economy.alternatives())
    # A way without a language model need not be guessed where some were measured.
    known |= {"without_model"} if economy.baselines() else set()
    needs = "alternatives.{}: what it would gain, and what it would cost"
    is_today = economy.measured is not None and economy.case.verdict.today == "few_shot"
    return tuple(
        NotPriced(name=name, title=TITLES[name], needs=needs.format(name))
        for name in ALTERNATIVES
        if name not in known and not (is_today and name == "few_shot")
    )
