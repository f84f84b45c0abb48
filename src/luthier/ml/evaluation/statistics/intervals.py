"""Figures and paired differences with their intervals and tests.

Three ways to see how far a figure would move are taken together, and the interval reaches as far as the widest of them
says: the percentiles of the bootstrap (which follow the formula wherever it bends), Student's t, and t corrected for
skew, both from leaving one row out. Percentiles are figures that the formula gave, and both t are computed on a scale
without ends (`core.bounds`): every interval lies inside what its figure can be, and a difference inside what two such
figures can differ by. Where the figure is a share of rows, Wilson's interval is used instead. How often such intervals
hold the truth is simulated by benchmarks/statistics_truth.py, and shown in docs/statistics.md.

An interval of a difference leaves out 0 just where its p-value is below 5%.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 (percentiles) and 16 (test by
centring); Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4.2 (one is added to both
counts, so that no p-value is 0); leave_one_out.py and shares.py name their own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from luthier.core.evaluation import NOT_DISTINGUISHABLE, VerdictWord
from luthier.core.records.bounds import Bounds
from luthier.ml.evaluation.statistics.bootstrap import (
    NUM_RESAMPLES,
    Aggregate,
    Array,
    cluster_sums,
    resampled_sums,
    same_rows,
)
from luthier.ml.evaluation.statistics.leave_one_out import Spread, spread_of
from luthier.ml.evaluation.statistics.shares import is_share, share_difference_ends, share_ends
from luthier.ml.evaluation.statistics.significance import mcnemar

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2


class Interval(NamedTuple):
    """A figure with its 95% interval, all in the figure's own unit.

    Attributes:
        value: the figure on the whole data.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A minus B with its 95% interval, in the figure's own unit.

    Attributes:
        difference: the figure of A less that of B.
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: two-sided, of "no difference".
        standard_error: of the difference.
    """

    difference: float
    low: float
    high: float
    p_value: float
    standard_error: float


def bootstrap_interval(
    stats: Array,
    aggregate: Aggregate,
    *,
    bounds: Bounds,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The figure of one system with its interval.

    From a single row no spread can be seen: low = high, except for a share.

    Args:
        stats: [rows, k].
        aggregate: sums [..., k] -> figures [...].
        bounds: what the figure can be.
        seed: of the draws; equal seeds give equal draws for equal numbers of rows.
        num_resamples: draws of the whole data.
        clusters: the source of each row; None where every row is its own.

    Raises:
        RequestError: no rows, or not one source a row.
    """
    sums = resampled_sums(stats, seed=seed, num_resamples=num_resamples, clusters=clusters)
    return interval_of(stats.sum(axis=0), sums, aggregate, bounds=bounds, rows=cluster_sums(stats, clusters))


def paired_bootstrap(
    stats_a: Array,
    stats_b: Array,
    aggregate: Aggregate,
    *,
    bounds: Bounds,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Sequence[Hashable] | None = None,
) -> Difference:
    """A minus B on the same rows.

    Args:
        stats_a: [rows, k] of A.
        stats_b: [rows, k] of B; row i of both is from the same held-out row.
        aggregate: sums [..., k] -> figures [...].
        bounds: what one figure can be.
        seed: of the draws.
        num_resamples: draws of the whole data.
        clusters: the source of each row; None where every row is its own.

    Raises:
        RequestError: no rows, different numbers of rows or statistics, or not one source a row.
    """
    same_rows(stats_a, stats_b)
    # [rows, 2 k]: one draw resamples both systems, which is what makes the test paired.
    both = np.concatenate([stats_a, stats_b], axis=1)
    sums = resampled_sums(both, seed=seed, num_resamples=num_resamples, clusters=clusters)
    rows = cluster_sums(both, clusters)
    a, b = slice(0, stats_a.shape[1]), slice(stats_a.shape[1], None)
    return difference_of(both.sum(axis=0), sums, a, b, aggregate, len(rows), bounds=bounds, rows=rows)


def interval_of(
    total: Array, sums: Array, aggregate: Aggregate, *, bounds: Bounds, rows: Array | None = None
) -> Interval:
    """The figure of the whole data (its sums: [k]) with its interval.

    Args:
        total: [k], sums over all rows.
        sums: [resamples, k].
        aggregate: sums [..., k] -> figures [...].
        bounds: what the figure can be.
        rows: what was resampled, [rows or sources, k]; those that contribute nothing do not count. Without rows only
            the percentiles are left, and those are too narrow below some 100 rows.
    """
    value = float(aggregate(total))
    ends = percentiles(aggregate(sums))
    if rows is None:
        return Interval(value, *ends)
    rows = _contributing(rows)
    if is_share(rows, aggregate):
        return Interval(value, *share_ends(value * len(rows), len(rows), TAIL))
    # A single row may have no figure of its own (0 / 0); NaN then fails the comparison below.
    with np.errstate(all="ignore"):
        alone = aggregate(rows)
    # Equal except for the last bits, which a sum of fractions leaves.
    if len(rows) > 1 and math.isfinite(bounds.width) and (np.abs(alone - value) <= 1e-9 * bounds.width).all():
        return Interval(value, *_of_equal_rows(value, len(rows), bounds))
    return Interval(value, *widened(ends, value, spread_of(rows, aggregate), bounds))


def difference_of(
    total: Array,
    sums: Array,
    columns_a: slice,
    columns_b: slice,
    aggregate: Aggregate,
    num_rows: int,
    *,
    bounds: Bounds,
    rows: Array | None = None,
    num_different: int | None = None,
) -> Difference:
    """A minus B, from resampled sums that hold both.

    The p-value is that of the interval: the largest of those of t, skew-corrected t and percentiles; of shares, that of
    the exact McNemar test; without `rows`, that of the centred bootstrap. It is never below 2^(1 - n) for n rows in
    which the two differ, since no test by signs of paired differences can be surer than that, nor below what that many
    resamples could show. Where such a bound keeps it at 5% or more, the interval reaches to 0, as that of the exact
    test does (Lehmann and Romano, "Testing Statistical Hypotheses", 2005, section 3.5: what a test does not refuse is
    what its interval holds).

    Args:
        total: [k], sums over all rows.
        sums: [resamples, k].
        columns_a: columns of A among the k.
        columns_b: columns of B among the k.
        aggregate: sums of one system [..., columns] -> figures [...]; of either side, where these differ in width.
        num_rows: rows that were resampled.
        bounds: what one figure can be.
        rows: what was resampled, [rows or sources, k].
        num_different: of `rows`, those in which the two differ; counted from equal columns where it is None.
    """

    def figure(of: Array) -> Array:
        return aggregate(of[..., columns_a]) - aggregate(of[..., columns_b])

    resampled, measured = figure(sums), float(figure(total))
    ends, error = percentiles(resampled), float(resampled.std())
    if rows is None:
        p_value = max(_centred(resampled, measured), _surest(num_rows))
        return Difference(measured, *ends, p_value, error)
    width = rows[:, columns_a].shape[1]
    both = np.concatenate([rows[:, columns_a], rows[:, columns_b]], axis=1)
    # Rows that count for neither side would pass for agreement and make the t quantile too small.
    both = _contributing(both)
    a, b = both[:, :width], both[:, width:]
    if is_share(a, aggregate) and is_share(b, aggregate):
        right_a, right_b = a[:, 0], b[:, 0]
        ends = share_difference_ends(int((right_a > right_b).sum()), int((right_b > right_a).sum()), len(a), TAIL)
        return in_agreement(Difference(measured, *ends, mcnemar(right_a, right_b), error))

    def paired(of: Array) -> Array:
        return aggregate(of[..., :width]) - aggregate(of[..., width:])

    spread, of_differences = spread_of(both, paired), bounds.of_differences
    p_value = _centred(resampled, measured) if spread is None else spread.p_value(measured, of_differences)
    # A p-value cannot be finer than one resample more than were drawn.
    num_different = int((a != b).any(axis=1).sum()) if num_different is None else num_different
    surest = max(_surest(num_different), 1 / (len(resampled) + 1))
    p_value = max(p_value, _of_percentiles(resampled, measured), surest)
    ends = widened(ends, measured, spread, of_differences)
    return in_agreement(Difference(measured, *ends, p_value, error))


def percentiles(values: Array) -> tuple[float, float]:
    """The 2.5th and the 97.5th."""
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    return float(low), float(high)


def widened(ends: tuple[float, float], value: float, spread: Spread | None, bounds: Bounds) -> tuple[float, float]:
    """The ends of percentiles, moved outwards to those from leaving one row out, inside the bounds."""
    if spread is None:
        return ends
    low, high = spread.ends(value, TAIL, bounds)
    # The wider of the two at each end: percentiles are too narrow for few rows, t is wrong for bent formulas.
    return min(low, ends[0]), max(high, ends[1])


def _contributing(rows: Array) -> Array:
    """Without the rows that are nothing but zeros: a figure that looks at few of the rows has seen those alone."""
    counts = (rows != 0).any(axis=1)
    return rows[counts] if counts.any() else rows


def _of_equal_rows(value: float, num_rows: int, bounds: Bounds) -> tuple[float, float]:
    """Where every row says the same, as many others as Wilson's interval of "none of them" allows may say anything."""
    # The largest share of unseen rows that differ, when 0 of num_rows do; at worst they lie at an end of the bounds.
    others = share_ends(0, num_rows, TAIL)[1]
    return value - others * (value - bounds.lower), value + others * (bounds.upper - value)


def _of_percentiles(resampled: Array, measured: float) -> float:
    """The level at which the percentile interval just reaches 0."""
    if measured == 0:
        return 1.0
    # Mirrored, so that only the side towards 0 has to be looked at.
    signed = resampled if measured > 0 else -resampled
    beyond, within = signed[signed <= 0], signed[signed > 0]
    if not len(beyond) or not len(within):
        return 0.0 if len(within) else 1.0
    last, first = float(beyond.max()), float(within.min())
    # Rank of 0 among the sorted resamples, interpolated as numpy's quantile does, so that p and interval agree.
    place = len(beyond) - 1 + (0.0 - last) / (first - last)
    return min(1.0, 2 * place / (len(resampled) - 1))


def in_agreement(found: Difference) -> Difference:
    """The interval with its end that is nearer to 0 at 0, where the p-value does not let it leave out 0."""
    if found.p_value < 1 - LEVEL:
        return found
    return found._replace(low=min(found.low, 0.0), high=max(found.high, 0.0))


def is_settled(difference: Difference) -> bool:
    """Whether the systems are distinguishable: p below 5%, and 0 outside of the interval."""
    excludes_zero = difference.low > 0 or difference.high < 0
    return excludes_zero and difference.p_value < 1 - LEVEL


def verdict_word(difference: Difference, *, higher_is_better: bool) -> VerdictWord:
    """What a difference says of the system that the other one is taken from: better, worse or not distinguishable."""
    if not is_settled(difference):
        return NOT_DISTINGUISHABLE
    return "better" if (difference.difference > 0) == higher_is_better else "worse"


def _centred(resampled: Array, measured: float) -> float:
    """The share of resamples whose difference lies at least as far from the measured one as that lies from 0."""
    # Sums in another order differ in the last bits: that much of slack keeps ties ties.
    slack = 1e-12 * max(1.0, abs(measured))
    num_as_far = int((np.abs(resampled - measured) >= abs(measured) - slack).sum())
    return (num_as_far + 1) / (len(resampled) + 1)


def _surest(num_different: int) -> float:
    # Two-sided sign test with all n differences of one sign: 2 * (1/2)^n.
    return min(1.0, 2.0 ** (1 - num_different))
