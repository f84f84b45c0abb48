"""How far a figure would move with other rows: bootstrap draws, leaving one row out, and intervals of shares of rows.

Bootstrap. All systems and metrics share the draws. Because every metric is a formula over sums of per-sample
statistics, one resample is one weighted sum: a matrix of counts [resamples, rows] times the statistics [rows, k]. Rows
of one source (questions about one document, turns of one conversation) are drawn together, since they are right or
wrong together.

Leaving one out. A percentile bootstrap of 20 skewed values holds the truth in 86 to 91 of 100 studies instead of 95: it
is as narrow as the rows it has seen, and takes no account of a spread that is itself estimated. Student's t cures the
second, Hall's transformation the skew. What is left of error falls with the number of rows, not with its root.

Shares of rows (right or wrong). Any resample of 30 wrong answers has 0 right, so a bootstrap calls 0 certain. Wilson's
interval says 0 to 11%.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; Koehn, "Statistical Significance
Tests for Machine Translation Evaluation", 2004 (paired, on corpus metrics); Davison and Hinkley, "Bootstrap Methods and
their Application", 1997, section 3.8 (sources drawn whole); Tukey, "Bias and confidence in not quite large samples",
1958 (leaving one out); Hall, "On the Removal of Skewness by Transformation", 1992, section 2, the monotone cubic
transformation; Hesterberg, "What Teachers Should Know about the Bootstrap", 2015, section 3 (how short percentile
intervals fall); DasGupta, "Asymptotic Theory of Statistics and Probability", 2008, chapter 3 (delta method), for the
scale without ends of `core.bounds`; Wilson, "Probable inference, the law of succession, and statistical inference",
1927; Brown, Cai, DasGupta, "Interval Estimation for a Binomial Proportion", 2001 (Wilson's for 40 rows and fewer);
Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design", 1998.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import RequestError
from luthier.core.records.bounds import REAL_LINE, Bounds

Array = NDArray[np.float64]
Aggregate = Callable[[Array], Array]

NUM_RESAMPLES = 10_000
# Draws in memory at the same time: at 8 bytes for the index, the count and its float, about 100 MB.
_BLOCK_DRAWS = 4_000_000


def resampled_sums(
    stats: Array, *, seed: int, num_resamples: int = NUM_RESAMPLES, clusters: Sequence[Hashable] | None = None
) -> Array:
    """Sums of the statistics over bootstrap resamples of the rows: [rows, k] -> [resamples, k].

    Equal seeds and numbers of rows (or equal clusters) give equal draws for every k: that is what pairs two calls.

    Args:
        stats: [rows, k].
        seed: of the draws.
        num_resamples: how many resamples.
        clusters: the source of each row; rows of one source are drawn together.

    Raises:
        RequestError: no rows, or not one source a row.
    """
    rows = cluster_sums(stats, clusters)
    num_rows = len(rows)
    # Depends on the number of rows alone, so that equal calls draw in equal blocks.
    block = max(1, _BLOCK_DRAWS // num_rows)
    if num_resamples <= block:
        return _counts_of(seed, num_resamples, num_rows).astype(np.float64) @ rows
    generator = np.random.default_rng(seed)
    sums = np.empty((num_resamples, rows.shape[1]))
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        sums[start : start + size] = _drawn_counts(generator, size, num_rows).astype(np.float64) @ rows
    return sums


def _drawn_counts(generator: np.random.Generator, num_resamples: int, num_rows: int) -> NDArray[np.int64]:
    """How often each resample has each row: [resamples, rows]."""
    draws = generator.integers(0, num_rows, size=(num_resamples, num_rows))
    # Each resample gets its own range of numbers, so that one bincount counts all of them.
    draws += np.arange(num_resamples)[:, None] * num_rows
    return np.bincount(draws.ravel(), minlength=num_resamples * num_rows).reshape(num_resamples, num_rows)


@lru_cache(maxsize=2)
def _counts_of(seed: int, num_resamples: int, num_rows: int) -> NDArray[np.uint32]:
    """The counts of one block; kept, since each metric and each pair of systems of an evaluation has the same draws.

    At most 16 MB. To draw and count them takes ten times as long as to add the statistics up.
    """
    counts = _drawn_counts(np.random.default_rng(seed), num_resamples, num_rows).astype(np.uint32)
    counts.flags.writeable = False
    return counts


def cluster_sums(stats: Array, clusters: Sequence[Hashable] | None) -> Array:
    """The statistics of each source, in the order in which they first appear: [rows, k] -> [sources, k].

    Without clusters every row is its own source.

    Raises:
        RequestError: no rows, or not one source a row.
    """
    if len(stats) == 0:
        raise RequestError("0 rows", expected="at least one row to resample", do="evaluate on some held-out rows")
    if clusters is None:
        return stats
    if len(clusters) != len(stats):
        raise RequestError(
            f"{len(clusters)} sources for {len(stats)} rows", expected="the source of every row", do="name one a row"
        )
    places: dict[Hashable, int] = {}
    of_row = [places.setdefault(source, len(places)) for source in clusters]
    sums = np.zeros((len(places), stats.shape[1]))
    # Unbuffered, unlike sums[of_row] += stats, which adds only one of several rows of a source.
    np.add.at(sums, of_row, stats)
    return sums


def same_rows(stats_a: Array, stats_b: Array) -> None:
    """Refuse statistics of different rows.

    Raises:
        RequestError: different numbers of rows, or of statistics.
    """
    if stats_a.shape != stats_b.shape:
        raise RequestError(
            f"statistics of {len(stats_a)} and {len(stats_b)} rows",
            expected="the same rows for both systems",
            do="evaluate both systems on the same held-out rows",
        )


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

        It is computed on the scale of the bounds' link, so that it is within them; towards an open end it reaches
        at least as far as on the plain scale, where only the skew of the rows makes it asymmetric.
        """
        low, high = self._ends(value, tail, bounds)
        plain = self._ends(value, tail, REAL_LINE)
        low = min(low, plain[0]) if math.isinf(bounds.lower) else low
        high = max(high, plain[1]) if math.isinf(bounds.upper) else high
        return low, high

    def _ends(self, value: float, tail: float, bounds: Bounds) -> tuple[float, float]:
        from scipy.special import stdtrit

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
        from scipy.special import stdtr

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


def is_share(rows: Array, aggregate: Aggregate) -> bool:
    """Whether the figure is the share of rows that are right: 0 or 1 for each row, with weight 1, and their mean."""
    if rows.shape[1] != 2 or not (rows[:, 1] == 1).all() or not ((rows[:, 0] == 0) | (rows[:, 0] == 1)).all():
        return False
    return math.isclose(float(aggregate(rows.sum(axis=0))), float(rows[:, 0].mean()), abs_tol=1e-12)


def are_counts(rows: Array) -> bool:
    """Whether two systems, [sources, 4], may count right answers and rows: whole numbers, no more right than rows."""
    if rows.shape[1] != 4 or (rows != np.round(rows)).any():
        return False
    right, num = rows[:, ::2], rows[:, 1::2]
    return bool(((right >= 0) & (right <= num)).all())


def share_ends(num_right: float, num_rows: int, tail: float) -> tuple[float, float]:
    """Wilson's interval of a share, leaving out `tail` at each side.

    Args:
        num_right: rows that are right; a fraction where right answers are weighted.
        num_rows: rows in all, at least 1.
        tail: probability left out at each side, 0.025 for a 95% interval.
    """
    from scipy.special import ndtri

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
    from scipy.optimize import brentq
    from scipy.special import ndtri

    z = -float(ndtri(tail))
    measured = (only_a - only_b) / num_rows

    def beyond(difference: float) -> float:
        """How far the measured difference is from this one, in standard errors under this one, less z."""
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
