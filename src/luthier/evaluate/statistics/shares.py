"""Shares of rows (right or wrong): intervals that stay honest where all rows are right, or none.

Any resample of 30 wrong answers has 0 right, so a bootstrap calls 0 certain. Wilson's interval says 0 to 11%.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference", 1927; Brown, Cai, DasGupta,
"Interval Estimation for a Binomial Proportion", 2001 (Wilson's for 40 rows and fewer); Bonett and Price, "Adjusted Wald
Confidence Interval for a Difference of Binomial Proportions Based on Paired Data", 2012.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm

from luthier.evaluate.statistics.bootstrap import Aggregate, Array


def is_share(rows: Array, aggregate: Aggregate) -> bool:
    """Whether the figure is the share of rows that are right: 0 or 1 beside a one in each, and their mean."""
    if rows.shape[1] != 2 or not (rows[:, 1] == 1).all() or not np.isin(rows[:, 0], (0, 1)).all():
        return False
    return math.isclose(float(aggregate(rows.sum(axis=0))), float(rows[:, 0].mean()), abs_tol=1e-12)


def share_ends(num_right: float, num_rows: int, tail: float) -> tuple[float, float]:
    """Wilson's interval of a share, leaving out `tail` at each side."""
    z = float(norm.isf(tail))
    share = float(num_right) / num_rows
    middle = (share + z**2 / (2 * num_rows)) / (1 + z**2 / num_rows)
    half = z * math.sqrt(share * (1 - share) / num_rows + z**2 / (4 * num_rows**2)) / (1 + z**2 / num_rows)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def share_difference_ends(only_a: int, only_b: int, num_rows: int, tail: float) -> tuple[float, float]:
    """Bonett and Price's interval of the share of A minus that of B on the same rows.

    only_a, only_b: rows that one has right and the other has not. One row is added to each of these counts.
    """
    z = float(norm.isf(tail))
    more_a, more_b, size = only_a + 1, only_b + 1, num_rows + 2
    middle = (more_a - more_b) / size
    half = z * math.sqrt(more_a + more_b - (more_a - more_b) ** 2 / size) / size
    measured = (only_a - only_b) / num_rows
    return min(measured, max(-1.0, middle - half)), max(measured, min(1.0, middle + half))
