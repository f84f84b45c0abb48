"""Tests of "no difference" between two systems on the same rows, and what several of them together are worth.

Sources: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947;
Holm, "A simple sequentially rejective multiple test procedure", 1979; Noreen, "Computer-Intensive Methods for Testing
Hypotheses", 1989 (approximate randomisation: the systems of a row are swapped); Phipson and Smyth, "Permutation
P-values Should Never Be Zero", 2010.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from luthier.core.errors import RequestError
from luthier.ml.evaluation.statistics.bootstrap import Aggregate, Array, cluster_sums, same_rows

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
    if first.shape != second.shape or first.ndim != 1 or not np.isin([*first, *second], [0, 1]).all():
        raise RequestError(
            f"values of shapes {first.shape} and {second.shape}",
            expected="one 0 (wrong) or 1 (right) a row for each system, on the same rows",
            do="use permutation_test for figures that are not right or wrong",
        )
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    fewer = min(only_first, only_second)
    return min(1.0, 2.0 * float(binom.cdf(fewer, only_first + only_second, 0.5)))


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
