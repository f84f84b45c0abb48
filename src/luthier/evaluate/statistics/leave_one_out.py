"""How far a figure would move with other rows, seen by leaving one row out at a time; honest with few and skewed rows.

A percentile bootstrap of 20 skewed values holds the truth in 86 to 91 of 100 studies instead of 95: it is as narrow as
the rows it has seen, and takes no account of a spread that is itself estimated. Student's t cures the second, Hall's
transformation the skew. What is left of error falls with the number of rows, not with its root.

Sources: Tukey, "Bias and confidence in not quite large samples", 1958 (leaving one out); Hall, "On the Removal of
Skewness by Transformation", 1992, section 2, the monotone cubic transformation; Hesterberg, "What Teachers Should Know
about the Bootstrap", 2015, section 3 (how short percentile intervals fall).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from luthier.evaluate.statistics.bootstrap import Aggregate, Array

_NO_SKEW = 1e-9


class Spread(NamedTuple):
    """Of a figure. skewness: of what single rows contribute to it. num_rows: rows, or sources."""

    standard_error: float
    skewness: float
    num_rows: int

    def ends(self, value: float, tail: float) -> tuple[float, float]:
        """The interval that leaves out `tail` at each side: as wide as t and skew-corrected t together."""
        quantile = -float(stdtrit(self.num_rows - 1, tail))
        low = max(quantile, self._untransformed(quantile))
        high = min(-quantile, self._untransformed(-quantile))
        return value - self.standard_error * low, value - self.standard_error * high

    def p_value(self, value: float) -> float:
        """Two-sided, of "it is 0": below the level just where the interval of that level leaves out 0."""
        ratio = value / self.standard_error
        surest = min(abs(ratio), math.copysign(1.0, ratio) * self._transformed(ratio))
        return 2 * float(stdtr(self.num_rows - 1, min(0.0, -surest)))

    @property
    def _bend(self) -> float:
        return self.skewness / (3 * math.sqrt(self.num_rows))

    def _transformed(self, ratio: float) -> float:
        """A t-ratio of skewed rows -> one that is distributed as that of symmetric rows."""
        bend = self._bend
        return ratio + bend * ratio**2 + bend**2 * ratio**3 / 3 + bend / 2

    def _untransformed(self, quantile: float) -> float:
        bend = self._bend
        if abs(bend) < _NO_SKEW:
            return quantile
        return (float(np.cbrt(1 + 3 * bend * (quantile - bend / 2))) - 1) / bend


def spread_of(rows: Array, figure: Aggregate) -> Spread | None:
    """The spread of figure(sums over rows), rows: [rows, k].

    None where there is none to be seen: one row, rows that all contribute the same, or a figure that single rows make
    or break (undefined when one is left out).
    """
    num_rows = len(rows)
    if num_rows < 2:
        return None
    with np.errstate(all="ignore"):
        without = figure(rows.sum(axis=0) - rows)
    if not np.isfinite(without).all():
        return None
    pulls = (num_rows - 1) * (without.mean() - without)
    square = float((pulls**2).mean())
    # What is left of rounding: rows that contribute the same do so to the last bits only.
    if square <= (1e-10 * float(np.abs(without).max()) * num_rows) ** 2:
        return None
    return Spread(math.sqrt(square / (num_rows - 1)), float((pulls**3).mean()) / square**1.5, num_rows)
