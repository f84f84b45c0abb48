"""Ranking of systems from pairwise preferences (Bradley-Terry).

The probability that i is preferred to j is 1 / (1 + exp(strength j - strength i)). A tie counts as half a win for each.

Sources: Bradley and Terry, "Rank analysis of incomplete block designs", 1952; Ford, "Solution of a ranking problem from
binary comparisons", 1957 (when there is a finite answer); Firth, "Bias reduction of maximum likelihood estimates", 1993
(half a win added, if there is none).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from scipy.stats import norm

from luthier.core.errors import DivergedError, RequestError
from luthier.core.records.bounds import REAL_LINE
from luthier.ml.evaluation.statistics import Interval
from luthier.ml.evaluation.statistics.intervals import TAIL
from luthier.ml.evaluation.statistics.resampling import Array, Spread, share_ends

_MAX_STEPS = 100
_CLOSE = 1e-10
_NO_SPREAD = 1e-9  # log-odds: pulls below it are rounding, items agree


@dataclass(frozen=True, slots=True)
class Ranking:
    """Strengths of systems from pairwise comparisons.

    Attributes:
        strengths: log-odds against the average system, in the order of the systems, with 95% intervals.
        is_penalised: some systems have won (or lost) against the others without exception, so that the maximum
            likelihood estimate is infinite. Half a win was added to each side of every compared pair, and the intervals
            of those systems are infinite on that side.
        pulls: [items, systems], the influence of each item on the strengths; None if judgements are not known by item.
        covariance: [systems, systems], of the strengths.
        wins: [systems, systems], the counts that the strengths are fitted to.
    """

    strengths: tuple[Interval, ...]
    is_penalised: bool
    pulls: Array | None
    covariance: Array
    wins: Array

    def __getitem__(self, system: int) -> Interval:
        """Strength of one system, by index."""
        return self.strengths[system]

    def gap(self, one: int, other: int) -> Interval:
        """Strength of one system minus that of another, by index; settled if the interval excludes 0."""
        value = self.strengths[one].value - self.strengths[other].value
        direction = np.zeros(len(self.strengths))
        direction[one], direction[other] = 1.0, -1.0
        low, high = _ends(value, direction, self.pulls, self.covariance, self.wins)
        # An open end of either system leaves the gap open to that side.
        if self.strengths[one].high == math.inf or self.strengths[other].low == -math.inf:
            high = math.inf
        if self.strengths[one].low == -math.inf or self.strengths[other].high == math.inf:
            low = -math.inf
        return Interval(value, low, high)


def bradley_terry(wins: ArrayLike) -> Ranking:
    """Strengths of systems from pairwise preferences.

    Args:
        wins: [systems, systems], how often the row's system was preferred to the column's, ties as 0.5 for both;
            intervals are then model-based, assuming independent judgements. Or [items, systems, systems], one such
            table per item (or rater, or source): then intervals follow from the variation between items, and several
            judgements of one item do not count as independent. If all items agree, or there is only one, they follow
            from the number of items.

    Raises:
        RequestError: the table is invalid, has fewer than two systems, or groups of systems were never compared.
    """
    tables = np.asarray(wins, dtype=np.float64)
    if tables.ndim not in (2, 3) or tables.shape[-1] != tables.shape[-2] or tables.shape[-1] < 2:
        raise RequestError(
            f"a table of shape {tables.shape}",
            expected="[systems, systems] or [items, systems, systems], at least two systems",
            do="count wins by pairs of systems",
        )
    whole = tables.sum(axis=0) if tables.ndim == 3 else tables
    if not np.isfinite(whole).all() or (tables < 0).any() or np.diag(whole).any():
        raise RequestError("wins below 0, or over oneself", expected="counts with an empty diagonal", do="count again")
    num_groups, group = connected_components(whole, directed=False)
    if num_groups > 1:
        groups = [np.flatnonzero(group == place).tolist() for place in range(num_groups)]
        raise RequestError(
            f"groups of systems that never met: {groups}",
            expected="a chain of comparisons from each system to each other",
            do="compare at least one of each group with one of another",
        )
    unbeaten, beaten = _one_sided(whole)
    is_penalised = bool(unbeaten or beaten)
    fitted = whole + 0.5 * ((whole + whole.T) > 0) if is_penalised else whole
    strengths = _fit(fitted)
    covariance = _inverse(fitted, strengths)
    pulls = _pulls(tables, strengths, covariance) if tables.ndim == 3 else None
    found = []
    for system, value in enumerate(strengths):
        # The system's strength less the mean of all, as a linear combination.
        direction = np.eye(len(strengths))[system] - 1 / len(strengths)
        low, high = _ends(float(value), direction, pulls, covariance, fitted)
        low, high = -math.inf if system in beaten else low, math.inf if system in unbeaten else high
        found.append(Interval(float(value), low, high))
    return Ranking(tuple(found), is_penalised, pulls, covariance, fitted)


def _one_sided(whole: Array) -> tuple[set[int], set[int]]:
    """Systems of groups that never lost to others, and of groups that never won against others."""
    # Strongly connected components of "has won against": a finite estimate needs a single one (Ford, 1957).
    num_groups, group = connected_components(whole > 0, directed=True, connection="strong")
    if num_groups == 1:
        return set(), set()
    winners, losers = np.nonzero(whole)
    across = group[winners] != group[losers]
    lost, won = set(group[losers[across]].tolist()), set(group[winners[across]].tolist())
    systems: Sequence[int] = range(len(whole))
    return {s for s in systems if group[s] not in lost}, {s for s in systems if group[s] not in won}


def _fit(wins: Array) -> Array:
    """The likeliest strengths, with mean 0, by Newton's method (the likelihood is concave)."""
    strengths = np.zeros(len(wins))
    for _ in range(_MAX_STEPS):
        slope = _slope(wins, strengths)
        step = _inverse(wins, strengths) @ slope
        # Far from the optimum Newton's step overshoots: limited to one unit of log-odds.
        step /= max(1.0, float(np.abs(step).max()))
        strengths = strengths + step
        strengths -= strengths.mean()
        if np.abs(step).max() < _CLOSE:
            return strengths
    raise DivergedError(
        f"no strengths after {_MAX_STEPS} steps",
        expected="a finite answer",
        do="leave out systems with few judgements",
    )


def _chances(strengths: Array) -> Array:
    result: Array = expit(strengths[:, None] - strengths[None, :])
    return result


def _slope(wins: Array, strengths: Array) -> Array:
    """Derivative of the log-likelihood: wins minus expected wins, [..., systems]."""
    met = wins + np.swapaxes(wins, -1, -2)
    result: Array = (wins - met * _chances(strengths)).sum(axis=-1)
    return result


def _inverse(wins: Array, strengths: Array) -> Array:
    """Covariance of strengths with mean 0: the inverse of the information matrix."""
    chances = _chances(strengths)
    weights = (wins + wins.T) * chances * (1 - chances)
    # The information matrix is singular: strengths are known up to a constant. The pseudo-inverse fixes their mean at
    # 0.
    result: Array = np.linalg.pinv(np.diag(weights.sum(axis=1)) - weights).astype(np.float64)
    return result


def _pulls(tables: Array, strengths: Array, covariance: Array) -> Array:
    """The influence of each item on the strengths, times the number of items: [items, systems], columns of mean 0."""
    slopes = _slope(tables, strengths)
    result: Array = len(tables) * (slopes - slopes.mean(axis=0)) @ covariance
    return result


def _ends(value: float, direction: Array, pulls: Array | None, covariance: Array, wins: Array) -> tuple[float, float]:
    if pulls is None:
        half = float(norm.isf(TAIL)) * math.sqrt(max(0.0, float(direction @ covariance @ direction)))
        return value - half, value + half
    along = pulls @ direction
    if (np.abs(along) <= _NO_SPREAD).all():
        return _of_equal_items(value, direction, wins, len(along))
    square, num = float((along**2).mean()), len(along)
    return Spread(math.sqrt(square / (num - 1)), float((along**3).mean()) / square**1.5, num).ends(
        value, TAIL, REAL_LINE
    )


def _of_equal_items(value: float, direction: Array, wins: Array, num_items: int) -> tuple[float, float]:
    """If all items agree, as many unseen items as Wilson's interval for 0 allows may disagree."""
    # The mechanism of `intervals._of_equal_rows`: without it, three agreeing items would make a strength certain.
    others = share_ends(0, num_items, TAIL)[1]
    met = wins + wins.T
    # [systems, systems]: the weight of the row's system in the value minus that of the column's.
    ahead = np.sign(direction[:, None] - direction[None, :])
    # At worst the unseen items prefer, in every compared pair, the system that moves the value to this end.
    low, high = (
        float(direction @ _fit((1 - others) * wins + others * met * (1 + sign * ahead) / 2)) for sign in (-1, 1)
    )
    return min(value, low), max(value, high)
