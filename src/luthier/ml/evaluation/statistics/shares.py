"""Shares of rows (right or wrong): intervals that stay honest where all rows are right, or none.

Any resample of 30 wrong answers has 0 right, so a bootstrap calls 0 certain. Wilson's interval says 0 to 11%.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference", 1927; Brown, Cai, DasGupta,
"Interval Estimation for a Binomial Proportion", 2001 (Wilson's for 40 rows and fewer); Tango, "Equivalence test and
confidence interval for the difference in proportions for the paired-sample design", 1998.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import ndtri

from luthier.ml.evaluation.statistics.bootstrap import Aggregate, Array


def is_share(rows: Array, aggregate: Aggregate) -> bool:
    """Whether the figure is the share of rows that are right: 0 or 1 beside a one in each, and their mean."""
    if rows.shape[1] != 2 or not (rows[:, 1] == 1).all() or not ((rows[:, 0] == 0) | (rows[:, 0] == 1)).all():
        return False
    return math.isclose(float(aggregate(rows.sum(axis=0))), float(rows[:, 0].mean()), abs_tol=1e-12)


def share_ends(num_right: float, num_rows: int, tail: float) -> tuple[float, float]:
    """Wilson's interval of a share, leaving out `tail` at each side.

    Args:
        num_right: rows that are right; a fraction where right answers are weighted.
        num_rows: rows in all, at least 1.
        tail: probability left out at each side, 0.025 for a 95% interval.
    """
    z = -float(ndtri(tail))
    share = float(num_right) / num_rows
    middle = (share + z**2 / (2 * num_rows)) / (1 + z**2 / num_rows)
    half = z * math.sqrt(share * (1 - share) / num_rows + z**2 / (4 * num_rows**2)) / (1 + z**2 / num_rows)
    # Rounding may put an end past the share itself at 0 and at 1.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def share_difference_ends(only_a: int, only_b: int, num_rows: int, tail: float) -> tuple[float, float]:
    """Tango's interval of the share of A minus that of B on the same rows: all differences that a score test allows.

    Args:
        only_a: rows that A alone has right.
        only_b: rows that B alone has right. Where both are 0, the interval reaches as far to both sides as Wilson's
            does from 0.
        num_rows: rows in all.
        tail: probability left out at each side.
    """
    z = -float(ndtri(tail))
    measured = (only_a - only_b) / num_rows

    def beyond(difference: float) -> float:
        """How far the measured difference lies from this one, in standard errors under this one, less z."""
        # Of the rows that B alone has right, the likeliest share under this difference (Tango, section 2).
        linear = (2 * num_rows - only_a + only_b) * difference - only_a - only_b
        root = math.sqrt(max(0.0, linear**2 + 8 * num_rows * only_b * difference * (1 - difference)))
        share_b = (root - linear) / (4 * num_rows)
        variance = num_rows * max(0.0, 2 * share_b + difference * (1 - difference))
        apart = abs(only_a - only_b - num_rows * difference)
        return apart / math.sqrt(variance) - z if variance > 0 else (math.inf if apart > 0 else -z)

    # At -1 and 1 themselves the variance is 0 and the statistic undefined.
    edge = 1 - 1e-12
    low = float(brentq(beyond, -edge, measured)) if measured > -edge and beyond(-edge) > 0 else -1.0
    high = float(brentq(beyond, measured, edge)) if measured < edge and beyond(edge) > 0 else 1.0
    return low, high
