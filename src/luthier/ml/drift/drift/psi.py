"""How far two distributions over the same bins lie apart: the population stability index, with its interval.

PSI = sum over bins of (now - before) * ln(now / before): both Kullback-Leibler divergences together. By custom below
0.1 is little, above 0.25 much. Half an observation is added to each bin, so that an empty one stays finite, and what
chance alone gives, (bins - 1) * (1 / before + 1 / now), is taken off.

Sources: Siddiqi, "Credit Risk Scorecards", 2006 (0.1 and 0.25); Yurdakul, "Statistical Properties of Population
Stability Index", 2018, section 3 (its mean under no change); the spread is by the delta method.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from scipy.special import ndtri

from luthier.core.records.bounds import Bounds
from luthier.ml.drift.drift.ranks import Floats, Ints

MUCH: Final = 0.25
_NUM_BINS: Final = 10
_INDEX: Final = Bounds(0.0, math.inf)


class Apart(NamedTuple):
    """The index and its standard error."""

    value: float
    error: float

    def ends(self, tail: float) -> tuple[float, float]:
        """The interval that leaves out `tail` at each side, on the scale of logarithms: no index is below 0."""
        return _INDEX.around(self.value, self.error, -float(ndtri(tail)))


def psi(before: Floats, now: Floats) -> Apart:
    """The index of counts in the same bins, both [bins] with at least one observation each."""
    num_before, num_now = before.sum(), now.sum()
    p, q = (before + 0.5) / (num_before + len(before) / 2), (now + 0.5) / (num_now + len(now) / 2)
    log = np.log(q / p)
    value = float(((q - p) * log).sum()) - (len(before) - 1) * (1 / num_before + 1 / num_now)
    # Delta method: derivatives of the index by each share of now and of before, then multinomial variances.
    by_now, by_before = log + 1 - p / q, -log + 1 - q / p
    variance = _spread(q, by_now) / num_now + _spread(p, by_before) / num_before
    # What chance gives is subtracted, so the estimate can fall below 0, which no index is.
    return Apart(max(0.0, value), float(np.sqrt(max(variance, 0.0))))


def binned(before: Floats, now: Floats) -> tuple[Floats, Floats]:
    """Counts of numbers in bins that hold a tenth each of `before`; equal values stay in one bin."""
    # Many equal values give equal quantiles; unique merges them into fewer bins.
    edges = np.unique(np.quantile(before, np.linspace(0, 1, _NUM_BINS + 1)[1:-1]))
    places = (np.searchsorted(edges, values, "left").astype(np.int64) for values in (before, now))
    found = [_counts(one, len(edges) + 1) for one in places]
    return found[0], found[1]


def matched(before: Floats, now: Floats, num_kinds: int) -> tuple[Floats, Floats]:
    """Counts of kinds, which are whole numbers from 0; what is in neither is left out."""
    found = _counts(before.astype(np.int64), num_kinds), _counts(now.astype(np.int64), num_kinds)
    is_there = found[0] + found[1] > 0
    return found[0][is_there], found[1][is_there]


def _counts(places: Ints, num: int) -> Floats:
    return np.bincount(places, minlength=num).astype(np.float64)


def _spread(weights: Floats, values: Floats) -> float:
    return float((weights * values**2).sum() - (weights * values).sum() ** 2)
