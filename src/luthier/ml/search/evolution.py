"""CMA-ES over all that has an order: rates by factors, counts, and choices of numbers by their places.

Hansen, 2016, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772, as the package `cmaes` has it, which Optuna's
CmaEsSampler uses it. That sampler keeps its state in the trials that it was asked for, and takes no choices; here the
strategy is given the record again, one generation after another, so that its proposals depend on nothing else. It uses
only the order within a generation, so losses of different rungs may be in one. What has no order is left to TPE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from luthier.core.workflows.study import Parameter, Space, Trial, Values
from luthier.ml.search.rungs import ranked

_WIDTH: Final = 0.25
"""The deviation that it begins with, as a share of each range."""


def evolved(space: Space, trials: Sequence[Trial], *, own: Values, seed: int) -> Values:
    """Values for what has an order and always plays a part; empty where that is less than two parameters.

    Args:
        own: what the recipe as it came sets; the search begins there.
    """
    axes = [p for p in space.parameters if _has_order(p) and not p.when]
    if len(axes) < 2:
        return {}
    import numpy as np
    from cmaes import CMA

    start = np.array([_place(axis, own) if axis.name in own else 0.5 for axis in axes])
    strategy = CMA(mean=start, sigma=_WIDTH, bounds=np.array([[0.0, 1.0]] * len(axes)), seed=seed % 2**31)
    order = {trial.number: float(place) for place, trial in enumerate(ranked(trials))}
    known = [
        (np.array([_place(axis, own | trial.values) for axis in axes]), order[trial.number])
        for trial in trials
        if trial.number in order and all(axis.name in own | trial.values for axis in axes)
    ]
    size = strategy.population_size
    # CMA-ES updates by whole generations; an incomplete last one waits for its members.
    for first in range(0, len(known) - size + 1, size):
        strategy.tell(known[first : first + size])
    asked = strategy.ask()
    return {axis.name: _value(axis, float(place)) for axis, place in zip(axes, asked, strict=True)}


def _has_order(parameter: Parameter) -> bool:
    if parameter.is_fixed:
        return False
    return parameter.kind != "choice" or all(
        isinstance(c, int | float) and not isinstance(c, bool) for c in parameter.choices
    )


def _place(axis: Parameter, values: Values) -> float:
    """Where a value lies in a parameter's range, 0 to 1; one outside at the nearer end."""
    value = float(values[axis.name])
    if axis.kind == "choice":
        choices = sorted(float(choice) for choice in axis.choices)
        nearest = min(range(len(choices)), key=lambda i: abs(choices[i] - value))
        # The middle of its cell, so that equal steps of the strategy reach neighbouring choices.
        return (nearest + 0.5) / len(choices)
    assert axis.low is not None
    assert axis.high is not None
    low, high, value = (
        math.log(x) if axis.log else x for x in (axis.low, axis.high, min(max(value, axis.low), axis.high))
    )
    return (value - low) / (high - low)


def _value(axis: Parameter, place: float) -> float | int | str:
    if axis.kind == "choice":
        choices = sorted(axis.choices, key=float)
        # A place of exactly 1 would be one past the end.
        return choices[min(len(choices) - 1, int(place * len(choices)))]
    assert axis.low is not None
    assert axis.high is not None
    low, high = (math.log(x) if axis.log else x for x in (axis.low, axis.high))
    value = low + place * (high - low)
    value = math.exp(value) if axis.log else value
    return round(value) if axis.kind == "int" else min(max(float(f"{value:.4g}"), axis.low), axis.high)
