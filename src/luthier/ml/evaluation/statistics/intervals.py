"""Figures and paired differences with their intervals, tests of "no difference", and how many rows a comparison takes.

Three estimates of how far a figure can vary are combined, and the interval extends as far as the widest of them
does: the percentiles of the bootstrap (which follow the formula where it is not linear), Student's t, and t corrected
for skew, both from leaving one row out. Percentiles are values of the formula, and both t intervals are computed on a
scale without ends (`core.bounds`): every interval is within the figure's range, and a difference within the range of
two such figures. Where the figure is a share of rows, Wilson's interval is used instead. How often such intervals
contain the true value is simulated by benchmarks/statistics_truth.py, and shown in docs/statistics.md.

The interval of a difference excludes 0 exactly where its p-value is below 5%.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 (percentiles) and 16 (test by
centring); Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4.2 (one is added to both
counts, so that no p-value is 0); McNemar, "Note on the sampling error of the difference between correlated proportions
or percentages", 1947; Holm, "A simple sequentially rejective multiple test procedure", 1979; Noreen,
"Computer-Intensive Methods for Testing Hypotheses", 1989 (approximate randomisation: the systems of a row are swapped);
Phipson and Smyth, "Permutation P-values Should Never Be Zero", 2010; Card, Henderson, Khandelwal, Jia, Mahowald,
Jurafsky, "With Little Power Comes Great Responsibility", 2020, arXiv:2010.06595 (power of comparisons in language
tasks). resampling.py names its own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cache
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from luthier.core.errors import RequestError
from luthier.core.evaluation import NOT_DISTINGUISHABLE, VerdictWord
from luthier.core.records.bounds import UNIT, Bounds
from luthier.ml.evaluation.statistics.resampling import (
    NUM_RESAMPLES,
    Aggregate,
    Array,
    Spread,
    are_counts,
    cluster_sums,
    is_share,
    resampled_sums,
    same_rows,
    share_difference_ends,
    share_ends,
    spread_of,
)

_BLOCK_DRAWS = 4_000_000


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values for a family of tests: below 5%, a difference holds, with at most 5% risk of any false one among them.

    Raises:
        RequestError: a p-value is not between 0 and 1.
    """
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise RequestError(f"p-values {list(p_values)}", expected="values from 0 to 1", do="pass p-values of tests")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        # Step-down: an adjusted value is never smaller than that of a smaller p-value.
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def mcnemar(first_right: ArrayLike, second_right: ArrayLike) -> float:
    """Exact two-sided p-value of "both are right equally often", from who was right in which row.

    Only rows that one has right and the other has not count: under no difference each of them falls to either side by
    a fair coin.

    Raises:
        RequestError: other values than right and wrong, or different numbers of rows.
    """
    first, second = np.asarray(first_right, dtype=np.float64), np.asarray(second_right, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not np.isin(np.concatenate((first, second)), (0, 1)).all():
        raise RequestError(
            f"values of shapes {first.shape} and {second.shape}",
            expected="one 0 (wrong) or 1 (right) a row for each system, on the same rows",
            do="use permutation_test for figures that are not right or wrong",
        )
    # Here, since a training imports this file before its first step.
    from scipy.special import betaincc

    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    fewer, more = sorted((only_first, only_second))
    if not more:
        return 1.0
    # `scipy.stats.binom.cdf(fewer, fewer + more, 0.5)`, which takes a tenth of a millisecond and a slow import.
    return min(1.0, 2.0 * float(betaincc(fewer + 1, more, 0.5)))


def permutation_test(
    stats_a: Array,
    stats_b: Array,
    aggregate: Aggregate,
    *,
    seed: int,
    num_permutations: int = 10_000,
    clusters: Sequence[Hashable] | None = None,
) -> float:
    """Two-sided p-value of "it makes no difference which system is which", by swapping the two within random rows.

    Args:
        stats_a: [rows, k] of one system.
        stats_b: [rows, k] of the other; row i of both is from the same held-out row.
        aggregate: sums [..., k] -> figures [...].
        seed: of the random swaps.
        num_permutations: random swaps that are tried.
        clusters: the source of each row; rows of one source are swapped together.

    Returns:
        The p-value, never below 1 / (num_permutations + 1).

    Raises:
        RequestError: no rows, different numbers of them, or not one source a row.
    """
    same_rows(stats_a, stats_b)
    a, b = cluster_sums(stats_a, clusters), cluster_sums(stats_b, clusters)
    # A swap changes the sign of half the difference, so sums of both sides are middle + and - signs @ half.
    half, middle = (a - b) / 2, (a + b).sum(axis=0) / 2
    measured = abs(float(aggregate(a.sum(axis=0)) - aggregate(b.sum(axis=0))))
    generator = np.random.default_rng(seed)
    num_as_far = 0
    block = max(1, _BLOCK_DRAWS // len(a))
    for start in range(0, num_permutations, block):
        size = min(block, num_permutations - start)
        # [size, rows] of -1 and 1; int8 draws take an eighth of the memory of int64.
        signs = generator.integers(0, 2, size=(size, len(a)), dtype=np.int8) * 2.0 - 1.0
        swapped = signs @ half
        found = np.abs(aggregate(middle + swapped) - aggregate(middle - swapped))
        # Sums in another order differ in the last bits: that much of slack keeps ties ties.
        num_as_far += int((found >= measured - 1e-9 * max(1.0, measured)).sum())
    # The measured order counts as one of the permutations, so that no p-value is 0.
    return (num_as_far + 1) / (num_permutations + 1)


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

    From a single row, or source, no spread can be seen: then nearly all of a finite range is in the interval, and of an
    open one low = high.

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
    # Scores that go beyond 1 are no share, though all rows may have 0 or 1: other rows may have more. An open end says
    # nothing of what they may have.
    has_other_ends = math.isfinite(bounds.width) and bounds != UNIT
    if not has_other_ends and is_share(rows, aggregate):
        return Interval(value, *share_ends(value * len(rows), len(rows), TAIL))
    # A single row may have no figure (0 / 0), and says nothing then.
    with np.errstate(all="ignore"):
        num_equal = _num_equal(aggregate(rows), value, bounds)
    if num_equal:
        return Interval(value, *_of_equal_rows(value, num_equal, bounds))
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
    """A minus B, from resampled sums that contain both.

    The p-value is that of the interval: the largest of those of t, skew-corrected t and percentiles; of shares, that of
    the exact McNemar test; without `rows`, that of the centred bootstrap. It is never below 2^(1 - n) for n rows in
    which the two differ, since no sign test of paired differences can be more certain than that, nor below what that
    many resamples could show. Where such a bound keeps it at 5% or more, the interval reaches to 0, as that of the
    exact test does (Lehmann and Romano, "Testing Statistical Hypotheses", 2005, section 3.5: what a test does not
    refuse is what its interval holds).

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
    with np.errstate(all="ignore"):
        num_equal = _num_equal(paired(both), measured, of_differences)
    # Others may have no difference, as in Tango's interval of rows that A alone has right. Where it is 0 in every row,
    # the systems do the same: that one stays without width.
    if num_equal and abs(measured) > _SAME * of_differences.width:
        side = Bounds(0.0, of_differences.upper) if measured > 0 else Bounds(of_differences.lower, 0.0)
        ends = _of_equal_rows(measured, num_equal, side)
    elif num_equal and bounds == UNIT and are_counts(both):
        # Of sources whose rows are right or wrong: as far as Tango's interval reaches of as many rows in agreement.
        ends = _of_equal_rows(0.0, num_equal, of_differences)
    return in_agreement(Difference(measured, *ends, p_value, error))


def percentiles(values: Array) -> tuple[float, float]:
    """The 2.5th and the 97.5th."""
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    return float(low), float(high)


def widened(ends: tuple[float, float], value: float, spread: Spread | None, bounds: Bounds) -> tuple[float, float]:
    """The ends of percentiles, moved outwards to those from leaving one row out, inside the bounds.

    Args:
        ends: of the percentile interval, in the figure's unit.
        value: the figure itself.
        spread: the standard errors of leaving one row out; None leaves the ends unchanged.
        bounds: of the figure.
    """
    if spread is None:
        return ends
    low, high = spread.ends(value, TAIL, bounds)
    # The wider of the two at each end: percentiles are too narrow for few rows, t is wrong for bent formulas.
    return min(low, ends[0]), max(high, ends[1])


def _contributing(rows: Array) -> Array:
    """Without the rows that are nothing but zeros: a figure that looks at few of the rows has seen those alone."""
    counts = (rows != 0).any(axis=1)
    return rows[counts] if counts.any() else rows


_SAME = 1e-9
"""Of the width of a figure: rows that differ by less say the same, but for what a sum of fractions rounds."""


def _num_equal(alone: Array, value: float, bounds: Bounds) -> int:
    """How many rows have a figure by themselves, if all of these have this value; otherwise 0, as for one of many."""
    known = alone[np.isfinite(alone)]
    are_equal = math.isfinite(bounds.width) and bool((np.abs(known - value) <= _SAME * bounds.width).all())
    return len(known) if are_equal and (len(known) > 1 or len(alone) == 1) else 0


def _of_equal_rows(value: float, num_rows: int, bounds: Bounds) -> tuple[float, float]:
    """Where every row says the same, as many others as Wilson's interval of "none of them" allows may say anything."""
    # The largest share of unseen rows that differ, when 0 of num_rows do; at worst they are at one end of the bounds.
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
    """The share of resamples whose difference is at least as far from the measured one as that is from 0."""
    # Sums in another order differ in the last bits: that much of slack keeps ties ties.
    slack = 1e-12 * max(1.0, abs(measured))
    num_as_far = int((np.abs(resampled - measured) >= abs(measured) - slack).sum())
    return (num_as_far + 1) / (len(resampled) + 1)


def _surest(num_different: int) -> float:
    # Two-sided sign test with all n differences of one sign: 2 * (1/2)^n.
    return min(1.0, 2.0 ** (1 - num_different))


@cache
def _fewest_rows() -> int:
    """The smallest number of rows that can show any difference: 6, where all of one sign have p = 2^-5."""
    return next(num for num in count(1) if _surest(num) < 1 - LEVEL)


POWER = 0.80


@cache
def _quantiles() -> tuple[float, float]:
    """The normal quantiles of the level and of the power, each above 0: about 1.96 and 0.84."""
    from scipy.special import ndtri

    return -float(ndtri(TAIL)), float(ndtri(POWER))


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
    of_level, of_power = _quantiles()
    # The interval is 2 * 1.96 standard errors wide; 1.96 + 0.84 of them are found in 4 of 5 comparisons.
    return (of_level + of_power) * (high - low) / (2 * of_level)


def rows_needed(difference: float, standard_error: float, num_rows: int) -> int | None:
    """About how many rows would settle a difference of this size: two-sided 5%, power 80%.

    Normal approximation: the standard error shrinks with the square root of the rows, and must come down to
    |difference| / (1.96 + 0.84); at least the six rows that a p-value below 5% takes. None where the difference or its
    error is 0: no number of such rows would settle it.

    Args:
        difference: between the two systems, in the metric's unit.
        standard_error: of that difference, in the same unit.
        num_rows: that both were measured on.
    """
    if difference == 0 or standard_error == 0:
        return None
    needed = num_rows * (sum(_quantiles()) * standard_error / difference) ** 2
    # These rows did not settle it, so fewer than one more would contradict the verdict; and below six rows the bound on
    # p (`_surest`) is above 5%, however large the difference.
    return max(num_rows + 1, math.ceil(needed), _fewest_rows())
