"""Figures and paired differences with their intervals and tests.

Three ways to see how far a figure would move are taken together, and the interval reaches as far as the widest of them
says: the percentiles of the bootstrap (which follow the formula wherever it bends), Student's t, and t corrected for
skew, both from leaving one row out. Where the figure is a share of rows, Wilson's interval stands instead. How often
such intervals hold the truth is simulated by benchmarks/statistics_truth.py, and shown in docs/statistics.md.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 (percentiles) and 16 (test by
centring); Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4.2 (one is added to both
counts, so that no p-value is 0); leave_one_out.py and shares.py name their own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from luthier.evaluate.statistics.bootstrap import (
    NUM_RESAMPLES,
    Aggregate,
    Array,
    cluster_sums,
    resampled_sums,
    same_rows,
)
from luthier.evaluate.statistics.leave_one_out import Spread, spread_of
from luthier.evaluate.statistics.shares import is_share, share_difference_ends, share_ends
from luthier.evaluate.statistics.significance import mcnemar

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2


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


def bootstrap_interval(
    stats: Array,
    aggregate: Aggregate,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The figure of one system with its interval.

    stats: [rows, k]. aggregate: sums [..., k] -> figures [...]. clusters: the source of each row. From a single row no
    spread can be seen: low = high, but for a share.
    """
    sums = resampled_sums(stats, seed=seed, num_resamples=num_resamples, clusters=clusters)
    return interval_of(stats.sum(axis=0), sums, aggregate, rows=cluster_sums(stats, clusters))


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
    rows = cluster_sums(both, clusters)
    a, b = slice(0, stats_a.shape[1]), slice(stats_a.shape[1], None)
    return difference_of(both.sum(axis=0), sums, a, b, aggregate, len(rows), rows=rows)


def interval_of(total: Array, sums: Array, aggregate: Aggregate, *, rows: Array | None = None) -> Interval:
    """The figure of the whole data (its sums: [k]) with its interval.

    sums: [resamples, k]. rows: what was resampled, [rows or sources, k]. Without rows only the percentiles are left,
    and those are too narrow below some 100 rows.
    """
    value = float(aggregate(total))
    ends = percentiles(aggregate(sums))
    if rows is None:
        return Interval(value, *ends)
    with np.errstate(all="ignore"):
        alone = aggregate(rows)
    if is_share(rows, aggregate) or (value in (0, 1) and (alone == value).all()):
        # Where every single row has 0, or every one 1, a figure is taken for a fraction, however it is made.
        return Interval(value, *share_ends(value * len(rows), len(rows), TAIL))
    low, high = widened(ends, value, spread_of(rows, aggregate))
    # What is never below 0 in a single row is not so over all, and what lies between 0 and 1 is a fraction.
    if alone.min() >= 0 <= value:
        low = max(low, 0.0)
        high = min(high, 1.0) if alone.max() <= 1 >= value else high
    return Interval(value, low, high)


def difference_of(
    total: Array,
    sums: Array,
    columns_a: slice,
    columns_b: slice,
    aggregate: Aggregate,
    num_rows: int,
    *,
    rows: Array | None = None,
) -> Difference:
    """A minus B, from resampled sums that hold both. columns_a, columns_b: where in the k columns each one stands.

    The p-value is that of the interval (below 5% where t and skew-corrected t leave out 0); of shares, that of the
    exact McNemar test; without `rows`, that of the centred bootstrap. It is never below 2^(1 - n) for n rows in which
    the two differ, since no test by signs of paired differences can be surer than that, nor below what so many
    resamples could show.
    """

    def figure(of: Array) -> Array:
        return aggregate(of[..., columns_a]) - aggregate(of[..., columns_b])

    resampled, measured = figure(sums), float(figure(total))
    ends, error = percentiles(resampled), float(resampled.std())
    if rows is None:
        p_value = max(_centred(resampled, measured), _surest(num_rows))
        return Difference(measured, *ends, p_value, error)
    a, b = rows[:, columns_a], rows[:, columns_b]
    if is_share(a, aggregate) and is_share(b, aggregate):
        right_a, right_b = a[:, 0], b[:, 0]
        ends = share_difference_ends(int((right_a > right_b).sum()), int((right_b > right_a).sum()), len(rows), TAIL)
        return Difference(measured, *ends, mcnemar(right_a, right_b), error)
    spread = spread_of(rows, figure)
    p_value = _centred(resampled, measured) if spread is None else spread.p_value(measured)
    surest = max(_surest(int((a != b).any(axis=1).sum())), 1 / (len(resampled) + 1))
    return Difference(measured, *widened(ends, measured, spread), max(p_value, surest), error)


def percentiles(values: Array) -> tuple[float, float]:
    """The 2.5th and the 97.5th."""
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    return float(low), float(high)


def widened(ends: tuple[float, float], value: float, spread: Spread | None) -> tuple[float, float]:
    """The ends of percentiles, moved outwards to those from leaving one row out."""
    if spread is None:
        return ends
    low, high = spread.ends(value, TAIL)
    return min(low, ends[0]), max(high, ends[1])


def is_settled(difference: Difference) -> bool:
    """Whether the systems are distinguishable: p below 5%, and 0 outside of the interval."""
    excludes_zero = difference.low > 0 or difference.high < 0
    return excludes_zero and difference.p_value < 1 - LEVEL


def _centred(resampled: Array, measured: float) -> float:
    """The share of resamples whose difference lies at least as far from the measured one as that lies from 0."""
    # Sums in another order differ in the last bits: that much of slack keeps ties ties.
    slack = 1e-12 * max(1.0, abs(measured))
    num_as_far = int((np.abs(resampled - measured) >= abs(measured) - slack).sum())
    return (num_as_far + 1) / (len(resampled) + 1)


def _surest(num_different: int) -> float:
    return min(1.0, 2.0 ** (1 - num_different))
