"""Is a canary worse? A randomisation test over users, since it is users that were drawn into it.

If the canary changes nothing, every other draw of as many users was as likely: so the sum over the users of the canary
is held against its distribution over such draws (Fisher, 1935, "The Design of Experiments", chapter 3; of units that
were randomised together, Small, Ten Have and Rosenbaum, 2008, "Randomization inference in a group-randomized trial").
Nothing is assumed of how exchanges of one user hang together, of rare failures, long tails or hours of the day.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from luthier.core.records.bounds import REAL_LINE, UNIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_OF_ONE: Final = 20
"""A user counts for at most this many exchanges: one who sends requests all day shall not decide alone."""
_MAX_LEVELS: Final = 64
_BATCH: Final = 1_000
_DRAWS_PER_LEVEL: Final = 10
_Z: Final = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Units:
    """Users: their mean values, for how many exchanges each counts, and whether they are the canary's. All of (U,)."""

    mean: NDArray[np.float64]
    weight: NDArray[np.float64]
    is_canary: NDArray[np.bool_]

    @property
    def num_canary(self) -> int:
        """Users of the canary."""
        return int(self.is_canary.sum())

    @property
    def least_p_value(self) -> float:
        """The smallest p-value that any values of these users can have: one draw of all possible ones."""
        return 1 / math.comb(len(self.mean), self.num_canary)


def units_of(unit: NDArray[np.int64], is_canary: NDArray[np.bool_], values: NDArray[np.float64]) -> Units:
    """Users out of exchanges, all of (N,).

    Args:
        values: NaN where an exchange has none; a user without any is left out.
    """
    has = ~np.isnan(values)
    found, index, counts = np.unique(unit[has], return_inverse=True, return_counts=True)
    sums = np.bincount(index, weights=values[has], minlength=len(found))
    # All exchanges of a user have the same side, so the last assignment is as good as any.
    canary = np.zeros(len(found), dtype=bool)
    canary[index] = is_canary[has]
    return Units(sums / np.maximum(counts, 1), np.minimum(counts, MAX_OF_ONE).astype(np.float64), canary)


def p_value(units: Units, level: float, seed: int) -> float:
    """One-sided: how likely a random draw of as many users has values at least as high. Valid at any number of them.

    A Monte Carlo p-value, with the observed draw counted among them (Phipson and Smyth, 2010, "Permutation P-values
    should never be zero").

    Args:
        level: what it will be held against; drawing ends where it cannot be reached any more.
    """
    pooled = float(np.average(units.mean, weights=units.weight))
    values, counts, scores = _in_levels(units.weight * (units.mean - pooled))
    # Lower by more than rounding, so that a draw with the same users always counts as at least as high.
    observed = float(scores[units.is_canary].sum()) - 1e-9 * max(1.0, float(np.abs(values).max()))
    random = np.random.default_rng(seed)
    most = math.ceil(_DRAWS_PER_LEVEL / level)
    above = num = 0
    # Stops early once p cannot come down to `level` even if no further draw reaches the observed sum.
    while num < most and 1 + above <= level * (1 + most):
        size = min(_BATCH, most - num)
        # Only how many users of each score a draw takes matters: [size, levels] @ [levels].
        drawn = random.multivariate_hypergeometric(counts, units.num_canary, size=size, method="marginals") @ values
        above, num = above + int(np.count_nonzero(drawn >= observed)), num + size
    return (1 + above) / (1 + num)


@dataclass(frozen=True, slots=True)
class Gap:
    """Means of both sides, and the canary's less the rest's with a 95% interval."""

    canary: float
    rest: float
    difference: float
    low: float
    high: float


def gap(units: Units, *, is_fraction: bool, is_log: bool = False) -> Gap:
    """The interval counts users, not exchanges: their spread on each side (Cochran, 1977, "Sampling Techniques", 2.9).

    Values lie between 0 and 1, and the interval inside of what two such means can differ by (Fisher's z, see
    `core.bounds`).

    Args:
        is_log: they are logarithms, which have no ends.
        is_fraction: values of 0 and 1; the interval is then no narrower than that of as many single exchanges with one
            failure and one success added to each side (Agresti and Caffo, 2000), so that none in fifty is not taken for
            never.
    """
    means, variances = [], []
    for side in (units.is_canary, ~units.is_canary):
        mean, weight = units.mean[side], units.weight[side]
        value = float(np.average(mean, weights=weight))
        num, total = len(mean), float(weight.sum())
        # Variance of a ratio estimate: exchanges of one user are correlated, so users are the sampling units.
        spread = float(np.sum((weight * (mean - value)) ** 2)) / total**2 * num / max(num - 1, 1)
        if is_fraction:
            padded = (value * total + 1) / (total + 2)
            spread = max(spread, padded * (1 - padded) / (total + 2))
        means.append(value)
        variances.append(spread)
    difference = means[0] - means[1]
    # Nearer to an end than half a user of the smaller side is not resolved by counting users.
    least = min(units.num_canary, len(units.mean) - units.num_canary)
    bounds = REAL_LINE if is_log else UNIT.of_differences
    low, high = bounds.around(difference, math.sqrt(sum(variances)), _Z, margin=1 / (2 * least))
    return Gap(means[0], means[1], difference, low, high)


def _in_levels(
    scores: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """(values, counts, scores rounded to these): few different ones, so that draws need not go over users.

    Any fixed scores make a valid test; rounding costs next to nothing of its power.
    """
    values, counts = np.unique(scores, return_counts=True)
    if len(values) > _MAX_LEVELS:
        edges = np.linspace(values[0], values[-1], _MAX_LEVELS)
        scores = edges[np.abs(scores[:, None] - edges[None, :]).argmin(axis=1)]
        values, counts = np.unique(scores, return_counts=True)
    return values, counts.astype(np.int64), scores
