"""How many rows a comparison takes: before it, which difference it can find; after it, how many rows would settle it.

Source: Card, Henderson, Khandelwal, Jia, Mahowald, Jurafsky, "With Little Power Comes Great Responsibility", 2020,
arXiv:2010.06595 (power of comparisons in language tasks).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from scipy.stats import norm

from luthier.core.records.bounds import Bounds
from luthier.ml.evaluation.statistics.bootstrap import Aggregate, Array
from luthier.ml.evaluation.statistics.intervals import TAIL, bootstrap_interval

POWER = 0.80
_FACTOR = float(norm.isf(TAIL) + norm.ppf(POWER))


def minimum_detectable_difference(
    stats: Array, aggregate: Aggregate, *, bounds: Bounds, seed: int, clusters: Sequence[Hashable] | None = None
) -> float:
    """About the smallest true difference that these rows would show in 4 of 5 comparisons, in the figure's own unit.

    Known before there is a second system: the difference is taken to spread as much as one system's own figure does.
    That holds where the two agree on half of what varies (correlation 0.5 over rows); systems that agree more, as a
    base and its tuned model often do, show smaller differences.

    Args:
        stats: [rows, k] of the system that is there.
        aggregate: sums [..., k] -> figures [...].
        bounds: what its figure can be.
        seed: of the resampling.
        clusters: the source of each row; None where every row is its own.
    """
    _, low, high = bootstrap_interval(stats, aggregate, bounds=bounds, seed=seed, clusters=clusters)
    # The interval is 2 * 1.96 standard errors wide; 1.96 + 0.84 of them are found in 4 of 5 comparisons.
    return _FACTOR * (high - low) / (2 * float(norm.isf(TAIL)))


def rows_needed(difference: float, standard_error: float, num_rows: int) -> int | None:
    """About how many rows would settle a difference of this size: two-sided 5%, power 80%.

    Normal approximation: the standard error shrinks with the square root of the rows, and must come down to
    |difference| / (1.96 + 0.84). None where the difference or its error is 0: no number of such rows would tell.
    """
    if difference == 0 or standard_error == 0:
        return None
    needed = num_rows * (_FACTOR * standard_error / difference) ** 2
    # These rows did not settle it, so fewer than one more would contradict the verdict.
    return max(num_rows + 1, math.ceil(needed))
