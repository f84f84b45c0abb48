"""How sure a figure is: bootstrap intervals and paired tests over held-out rows.

Rows are resampled with replacement, all systems and metrics on the same draws. Because every metric is a formula over
sums of per-sample statistics, one resample is one weighted sum: a matrix of counts [resamples, rows] times the
statistics [rows, k].

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 (percentile interval) and 16
(test by centring the bootstrap distribution); Koehn, "Statistical Significance Tests for Machine Translation
Evaluation", 2004 (paired, on corpus metrics); Davison and Hinkley, "Bootstrap Methods and their Application", 1997,
section 4.2 (add one to both counts, so that no p-value is 0).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import RequestError

Array = NDArray[np.float64]
Aggregate = Callable[[Array], Array]

NUM_RESAMPLES = 10_000
LEVEL = 0.95
POWER = 0.80
# Draws held at once: at 8 bytes for the index, the count and its float, about 100 MB.
_BLOCK_DRAWS = 4_000_000


class Interval(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A minus B with its 95% interval, the two-sided p-value of "no difference", and its standard error."""

    difference: float
    low: float
    high: float
    p_value: float
    standard_error: float


def resampled_sums(
    stats: Array, *, seed: int, num_resamples: int = NUM_RESAMPLES, clusters: Sequence[Hashable] | None = None
) -> Array:
    """Sums of the statistics over bootstrap resamples of the rows: [rows, k] -> [resamples, k].

    clusters: the source of each row; rows of one source are drawn together. Equal seeds and numbers of rows (or equal
    clusters) give equal draws, whatever k: that is what pairs two calls.

    Raises:
        RequestError: no rows, or not one source a row.
    """
    rows = cluster_sums(stats, clusters)
    num_rows = len(rows)
    generator = np.random.default_rng(seed)
    sums = np.empty((num_resamples, rows.shape[1]))
    block = max(1, _BLOCK_DRAWS // num_rows)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        draws = generator.integers(0, num_rows, size=(size, num_rows))
        draws += np.arange(size)[:, None] * num_rows
        counts = np.bincount(draws.ravel(), minlength=size * num_rows).reshape(size, num_rows)
        sums[start : start + size] = counts.astype(np.float64) @ rows
    return sums


def cluster_sums(stats: Array, clusters: Sequence[Hashable] | None) -> Array:
    """The statistics of each source, in the order in which they first appear: [rows, k] -> [sources, k].

    Without clusters every row is its own source.

    Raises:
        RequestError: no rows, or not one source a row.
    """
    if len(stats) == 0:
        raise RequestError("0 rows", expected="at least one row to resample", do="judge on some held-out rows")
    if clusters is None:
        return stats
    if len(clusters) != len(stats):
        raise RequestError(
            f"{len(clusters)} sources for {len(stats)} rows", expected="the source of every row", do="name one a row"
        )
    places: dict[Hashable, int] = {}
    of_row = [places.setdefault(source, len(places)) for source in clusters]
    sums = np.zeros((len(places), stats.shape[1]))
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
            do="judge both systems on the same held-out rows",
        )


def bootstrap_interval(
    stats: Array,
    aggregate: Aggregate,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The figure of one system with its interval.

    stats: [rows, k]. aggregate: sums [..., k] -> figures [...]. From a single row no spread can be seen: low = high.
    """
    sums = resampled_sums(stats, seed=seed, num_resamples=num_resamples, clusters=clusters)
    return interval_of(stats.sum(axis=0), sums, aggregate)


def paired_bootstrap(
    stats_a: Array,
    stats_b: Array,
    aggregate: Aggregate,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Sequence[Hashable] | None = None,
) -> Difference:
    """A minus B on the same rows. stats_a, stats_b: [rows, k], row i of both from the same held-out row.

    Raises:
        RequestError: different numbers of rows.
    """
    same_rows(stats_a, stats_b)
    both = np.concatenate([stats_a, stats_b], axis=1)
    sums = resampled_sums(both, seed=seed, num_resamples=num_resamples, clusters=clusters)
    width = stats_a.shape[1]
    num_units = len(both) if clusters is None else len(set(clusters))
    return difference_of(both.sum(axis=0), sums, slice(0, width), slice(width, 2 * width), aggregate, num_units)


def interval_of(total: Array, sums: Array, aggregate: Aggregate) -> Interval:
    """The figure of the whole data (sums: [k]) with the percentile interval of its resamples (sums: [resamples, k])."""
    low, high = _percentiles(aggregate(sums))
    return Interval(float(aggregate(total)), low, high)


def difference_of(
    total: Array, sums: Array, columns_a: slice, columns_b: slice, aggregate: Aggregate, num_rows: int
) -> Difference:
    """A minus B, from resampled sums that hold both. columns_a, columns_b: where in the k columns each one stands.

    The p-value is the share of resamples whose difference lies at least as far from the measured one as that lies from
    0. A bootstrap of very few rows is too sure of itself, so the p-value is never below 2^(1 - rows): no test by signs
    of paired differences can be surer than that.
    """
    resampled = aggregate(sums[:, columns_a]) - aggregate(sums[:, columns_b])
    measured = float(aggregate(total[columns_a]) - aggregate(total[columns_b]))
    low, high = _percentiles(resampled)
    # Sums in another order differ in the last bits: that much of slack keeps ties ties.
    slack = 1e-12 * max(1.0, abs(measured))
    num_as_far = int((np.abs(resampled - measured) >= abs(measured) - slack).sum())
    p_value = max((num_as_far + 1) / (len(resampled) + 1), min(1.0, 2.0 ** (1 - num_rows)))
    return Difference(measured, low, high, p_value, float(resampled.std()))


def is_settled(difference: Difference) -> bool:
    """Whether the systems are distinguishable: p below 5%, and 0 outside of the interval."""
    excludes_zero = difference.low > 0 or difference.high < 0
    return excludes_zero and difference.p_value < 1 - LEVEL


def _percentiles(values: Array) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
