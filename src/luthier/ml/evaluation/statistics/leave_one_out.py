"""How far a figure would move with other rows, seen by leaving one row out at a time; honest with few and skewed rows.

A percentile bootstrap of 20 skewed values holds the truth in 86 to 91 of 100 studies instead of 95: it is as narrow as
the rows it has seen, and takes no account of a spread that is itself estimated. Student's t cures the second, Hall's
transformation the skew. What is left of error falls with the number of rows, not with its root.

Sources: Tukey, "Bias and confidence in not quite large samples", 1958 (leaving one out); Hall, "On the Removal of
Skewness by Transformation", 1992, section 2, the monotone cubic transformation; Hesterberg, "What Teachers Should Know
about the Bootstrap", 2015, section 3 (how short percentile intervals fall); DasGupta, "Asymptotic Theory of
Statistics and Probability", 2008, chapter 3 (delta method), for the scale without ends of `core.bounds`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from luthier.core.records.bounds import REAL_LINE, Bounds
from luthier.ml.evaluation.statistics.bootstrap import Aggregate, Array

_NO_SKEW = 1e-9


class Spread(NamedTuple):
    """How far a figure would move with other rows.

    Attributes:
        standard_error: of the figure, in its own unit.
        skewness: of what single rows contribute to it.
        num_rows: rows, or sources.
    """

    standard_error: float
    skewness: float
    num_rows: int

    def ends(self, value: float, tail: float, bounds: Bounds) -> tuple[float, float]:
        """The interval that leaves out `tail` at each side: as wide as t and skew-corrected t together.

        It is computed on the scale of the bounds' link, so that it lies inside of them; towards an open end it reaches
        at least as far as on the plain scale, where the skew of the rows is all that bends it.
        """
        low, high = self._ends(value, tail, bounds)
        plain = self._ends(value, tail, REAL_LINE)
        low = min(low, plain[0]) if math.isinf(bounds.lower) else low
        high = max(high, plain[1]) if math.isinf(bounds.upper) else high
        return low, high

    def _ends(self, value: float, tail: float, bounds: Bounds) -> tuple[float, float]:
        scale = self._scale(value, bounds)
        quantile = -float(stdtrit(self.num_rows - 1, tail))
        # The t-ratio is (value - truth) / error, so its upper quantile gives the lower end of the interval.
        low = max(quantile, scale.untransformed(quantile))
        high = min(-quantile, scale.untransformed(-quantile))
        below, above = (scale.centre - scale.standard_error * end for end in (low, high))
        return min(value, bounds.unlink(below)), max(value, bounds.unlink(above))

    def p_value(self, value: float, bounds: Bounds) -> float:
        """Two-sided, of "it is 0": below the level just where the interval of that level leaves out 0.

        Args:
            value: the figure for all rows.
            bounds: of a figure that can be 0, such as a difference.
        """
        scale = self._scale(value, bounds)
        ratio = (scale.centre - bounds.link(0.0)) / scale.standard_error
        # The smaller of the two ratios: the p-value belongs to the wider interval.
        surest = min(abs(ratio), math.copysign(1.0, ratio) * scale.transformed(ratio))
        return 2 * float(stdtr(self.num_rows - 1, min(0.0, -surest)))

    def _scale(self, value: float, bounds: Bounds) -> _Scale:
        """On the linked scale a t-ratio has the skew of the rows, and half of what the link bends it by, against it."""
        # Nearer to an end than a quarter of a row cannot be resolved by rows.
        quarter = bounds.width / (4 * self.num_rows) if math.isfinite(bounds.width) else 0.0
        place = bounds.inside(value, max(self.standard_error, quarter))
        skew = self.skewness / (3 * math.sqrt(self.num_rows))
        bend = skew + bounds.curvature(place) * self.standard_error / 2
        return _Scale(bounds.link(place), self.standard_error * bounds.slope(place), bend, skew / 2)


class _Scale(NamedTuple):
    """A figure on the linked scale. A t-ratio r of it is distributed like z - bend z^2 - shift, z as if symmetric."""

    centre: float
    standard_error: float
    bend: float
    shift: float

    def transformed(self, ratio: float) -> float:
        """A t-ratio of skewed rows -> one that is distributed as that of symmetric rows (Hall's monotone cubic)."""
        return ratio + self.bend * ratio**2 + self.bend**2 * ratio**3 / 3 + self.shift

    def untransformed(self, quantile: float) -> float:
        """The t-ratio that `transformed` makes this of."""
        if abs(self.bend) < _NO_SKEW:
            return quantile - self.shift
        return (float(np.cbrt(1 + 3 * self.bend * (quantile - self.shift))) - 1) / self.bend


def spread_of(rows: Array, figure: Aggregate) -> Spread | None:
    """The spread of figure(sums over rows), rows: [rows, k].

    None where there is none to be seen: one row, rows that all contribute the same, or a figure that single rows make
    or break (undefined when one is left out).
    """
    num_rows = len(rows)
    if num_rows < 2:
        return None
    with np.errstate(all="ignore"):
        # [n, k]: the sums without row i, so that n figures cost one call.
        without = figure(rows.sum(axis=0) - rows)
    if not np.isfinite(without).all():
        return None
    # Jackknife influence of each row, [n]: the mean of all leave-one-out figures less that without this row.
    pulls = (num_rows - 1) * (without.mean() - without)
    square = float((pulls**2).mean())
    # What is left of rounding: rows that contribute the same do so to the last bits only.
    if square <= (1e-10 * float(np.abs(without).max()) * num_rows) ** 2:
        return None
    # Standardised before the cube: the cube of small pulls underflows, that of large ones overflows.
    skewness = float(((pulls / math.sqrt(square)) ** 3).mean())
    return Spread(math.sqrt(square / (num_rows - 1)), skewness, num_rows)
