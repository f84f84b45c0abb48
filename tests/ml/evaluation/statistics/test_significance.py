import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel

from luthier.core.errors import RequestError
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.statistics import holm, mcnemar, permutation_test

P_VALUES = st.lists(st.floats(0, 1), max_size=8)


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.2]) == [0.2]


@given(P_VALUES)
def test_holm_lies_between_the_p_value_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        assert p <= found <= min(1.0, len(p_values) * p) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert list(np.diff(np.array(adjusted)[order]) >= -1e-12) == [True] * max(0, len(p_values) - 1)


def test_holm_refuses_what_are_no_p_values():
    with pytest.raises(RequestError, match="from 0 to 1"):
        holm([0.1, 1.2])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_the_binomial_test_of_rows_that_differ(rows):
    first, second = ([row[side] for row in rows] for side in (0, 1))
    more, less = (sum(a > b for a, b in pair) for pair in (zip(first, second), zip(second, first)))  # noqa: B905
    expected = binomtest(more, more + less).pvalue if more + less else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


@pytest.mark.parametrize("num_only_first", [0, 1, 7, 40, 300])
@pytest.mark.parametrize("num_only_second", [0, 1, 8, 33, 1_000])
def test_mcnemar_counts_throws_of_a_coin_and_loads_no_module_of_distributions(
    num_only_first, num_only_second, monkeypatch
):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)  # an import of it fails
    num, fewer = num_only_first + num_only_second, min(num_only_first, num_only_second)
    throws = Fraction(sum(math.comb(num, heads) for heads in range(fewer + 1)), 2**num)
    first = [1] * num_only_first + [0] * num_only_second + [1, 0]
    second = [0] * num_only_first + [1] * num_only_second + [1, 0]
    assert mcnemar(first, second) == pytest.approx(float(min(Fraction(1), 2 * throws)), rel=1e-12)


def test_mcnemar_refuses_other_figures():
    with pytest.raises(RequestError, match="permutation_test"):
        mcnemar([0.5, 1.0], [0.0, 1.0])
    with pytest.raises(RequestError, match=r"shapes \(1,\) and \(2,\)"):
        mcnemar([1], [1, 0])


def test_swapping_agrees_with_the_t_test_and_with_mcnemar():
    generator = np.random.default_rng(0)
    a = generator.normal(0.2, 1, 80)
    b = generator.normal(0.0, 1, 80)
    found = permutation_test(mean_statistics(a), mean_statistics(b), mean_of_sums, seed=0)
    assert found == pytest.approx(ttest_rel(a, b).pvalue, abs=0.015)
    right, other = generator.random(60) < 0.8, generator.random(60) < 0.6
    found = permutation_test(mean_statistics(right), mean_statistics(other), mean_of_sums, seed=0)
    assert found == pytest.approx(mcnemar(right, other), abs=0.015)


def test_swapping_whole_sources_is_less_sure_than_swapping_rows():
    generator = np.random.default_rng(1)
    gain = np.repeat(generator.normal(0.3, 1, 8), 25)
    a, b = mean_statistics(gain), mean_statistics(np.zeros(200))
    assert permutation_test(a, b, mean_of_sums, seed=0) < 0.01
    clusters = [row // 25 for row in range(200)]
    assert permutation_test(a, b, mean_of_sums, seed=0, clusters=clusters) > 0.05


def test_equal_systems_and_different_rows():
    same = mean_statistics([0.1, 0.5, 0.9])
    assert permutation_test(same, same, mean_of_sums, seed=0) == 1.0
    with pytest.raises(RequestError, match="3 and 2 rows"):
        permutation_test(same, same[:2], mean_of_sums, seed=0)
    with pytest.raises(RequestError, match="0 rows"):
        permutation_test(same[:0], same[:0], mean_of_sums, seed=0)
