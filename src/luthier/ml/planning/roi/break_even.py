"""Where the answer turns: one input is moved, all others stay typical, until the tuned model is worth just as much.

As much as doing nothing, or as the best of the plain alternatives where that is worth more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from scipy.optimize import brentq

from luthier.core.results.roi_result import BreakEven, Kind
from luthier.ml.planning.roi import words
from luthier.ml.planning.roi.flows import ANSWERS, TUNED, Economy
from luthier.ml.planning.roi.inputs import Array, Values

CALLS: Final = "calls.per_month"
VALUE: Final = "calls.value_of_one_more_correct"
_MAX_TIMES: Final = 1e6
_NUM_STEPS: Final = 241


def break_even_gain(economy: Economy, values: Values, months: float, target: Array | float = 0.0) -> Array:
    """The accuracy gain at which the tuned model is worth `target` over that many months; NaN where none is.

    The value is a straight line in the gain, so this is exact. It may be negative: then savings alone pay.
    """
    flow = economy.flow(TUNED, values)
    used = np.maximum(0.0, months - flow.launch_months)
    slope = values[CALLS] * values[VALUE] * used
    rest = (flow.per_month - flow.monthly[ANSWERS]) * used - flow.spent
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(slope > 0, (target - rest) / slope, np.nan)


def best_alternative(economy: Economy, values: Values, months: float) -> tuple[str | None, float]:
    """The alternative that is worth most at these values, and how much; (None, 0) where none is worth more than 0."""
    found = {name: float(economy.flow(name, values).value(months)) for name in economy.alternatives()}
    name = max(found, key=lambda one: found[one], default=None)
    return (name, found[name]) if name is not None and found[name] > 0 else (None, 0.0)


def break_evens(economy: Economy, values: Values, months: float) -> tuple[BreakEven, ...]:
    """The turning points of gain, calls, value of an answer and what is spent once, at typical values."""
    rival, target = best_alternative(economy, values, months)
    against = words.MIDDLE[rival] if rival else "doing nothing"
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
    return tuple(one.model_copy(update={"sentence": _sentence(one, currency)}) for one in found)


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
    # brentq wants a change of sign: an end that is a root already is returned as it is.
    if advantage(high) == 0.0:
        return high, rises
    return float(low if advantage(low) == 0.0 else brentq(advantage, low, high)), rises


def _one(
    name: str, title: str, kind: Kind, now: float, needed: float | None, at_least: bool, against: str
) -> BreakEven:
    return BreakEven(
        name=name, title=title, kind=kind, now=now, needed=needed, at_least=at_least, against=against, sentence=""
    )


def _sentence(found: BreakEven, currency: str) -> str:
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
        beyond = " That is more than there is to gain." if found.needed > 1 else ""
        return f"An accuracy gain of at least {words.points(found.needed)} (now {now}).{beyond}"
    needed = words.of_kind(found.needed, found.kind, currency)
    bound = "at least" if found.at_least else "at most"
    openings = {
        CALLS: f"Calls: {bound} {needed} a month (now {now}).",
        VALUE: f"One more correct answer is worth {bound} {needed} (now {now}).",
        "once": f"Spent once: at most {needed} (now {now}).",
    }
    return openings[found.name]
