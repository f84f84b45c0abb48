import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from luthier.core.errors import RequestError
from luthier.evaluate.metrics.protocol import mean_of_sums, mean_statistics
from luthier.evaluate.statistics import (
    Difference,
    bootstrap_interval,
    is_settled,
    paired_bootstrap,
    resampled_sums,
    rows_needed,
)

VALUES = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=1, max_size=30)


def interval(values, seed=0, num_resamples=2_000):
    return bootstrap_interval(mean_statistics(values), mean_of_sums, seed=seed, num_resamples=num_resamples)


def paired(a, b, seed=0, num_resamples=2_000):
    return paired_bootstrap(
        mean_statistics(a), mean_statistics(b), mean_of_sums, seed=seed, num_resamples=num_resamples
    )


def test_the_interval_of_a_mean_is_that_of_normal_theory():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2_000)
    found = interval(values, num_resamples=10_000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05 * half)


@pytest.mark.parametrize(("law", "expected"), [("normal", 0.947), ("exponential", 0.930)])
def test_about_95_of_100_intervals_cover_the_truth(law, expected):
    """On 60 skewed values a percentile interval covers 93%, as the normal interval does: scipy's says the same."""
    generator = np.random.default_rng(2)
    trials = 1_500
    covered = 0
    for trial in range(trials):
        values = generator.normal(1.0, 1.0, 60) if law == "normal" else generator.exponential(1.0, 60)
        found = interval(values, seed=trial, num_resamples=500)
        covered += found.low <= 1.0 <= found.high
    # 2.5 standard errors of a share over 1,500 trials, and a little for 500 resamples.
    assert covered / trials == pytest.approx(expected, abs=0.02)


def test_the_p_value_of_no_difference_is_uniform_and_of_a_shift_that_of_normal_theory():
    generator = np.random.default_rng(3)
    p_values = [
        paired(generator.normal(size=50), generator.normal(size=50), seed=trial, num_resamples=500).p_value
        for trial in range(300)
    ]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09
    differences = generator.normal(0.12, 1.0, size=400)
    found = paired(differences, np.zeros(400), num_resamples=10_000)
    z = differences.mean() / (differences.std() / math.sqrt(400))
    assert found.p_value == pytest.approx(2 * norm.sf(abs(z)), abs=0.01)
    assert found.standard_error == pytest.approx(differences.std() / math.sqrt(400), rel=0.03)


@given(VALUES, st.integers(0, 2**31 - 1))
@settings(max_examples=40)
def test_intervals_lie_within_the_data_and_differences_mirror(values, seed):
    found = interval(values, seed=seed, num_resamples=200)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    other = values[::-1]
    there, back = paired(values, other, seed, 200), paired(other, values, seed, 200)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    assert there.p_value == pytest.approx(back.p_value)
    assert 0 < there.p_value <= 1


def test_draws_are_the_same_for_any_number_of_columns_and_for_any_block(monkeypatch):
    stats = np.random.default_rng(4).normal(size=(7, 3))
    whole = resampled_sums(stats, seed=5, num_resamples=50)
    assert resampled_sums(stats[:, :1], seed=5, num_resamples=50) == pytest.approx(whole[:, :1])
    monkeypatch.setattr("luthier.evaluate.statistics.bootstrap._BLOCK_DRAWS", 7 * 3)
    assert resampled_sums(stats, seed=5, num_resamples=50) == pytest.approx(whole)
    assert not np.allclose(resampled_sums(stats, seed=6, num_resamples=50), whole)


def test_each_resample_has_as_many_rows_as_the_data():
    sums = resampled_sums(np.ones((13, 1)), seed=0, num_resamples=100)
    assert (sums == 13).all()


def test_one_row_settles_nothing():
    found = paired([1.0], [0.0])
    assert (found.difference, found.low, found.high, found.p_value) == (1.0, 1.0, 1.0, 1.0)
    assert not is_settled(found)
    assert interval([0.3]) == (0.3, 0.3, 0.3)


@pytest.mark.parametrize(("num_rows", "settled"), [(2, False), (5, False), (6, True), (20, True)])
def test_a_constant_gain_settles_only_from_six_rows_on(num_rows, settled):
    found = paired([1.0] * num_rows, [0.5] * num_rows)
    assert found.p_value >= 2.0 ** (1 - num_rows)
    assert is_settled(found) == settled


def test_identical_systems_are_not_distinguishable():
    values = np.random.default_rng(6).normal(size=40)
    found = paired(values, values)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert not is_settled(found)
    assert rows_needed(found.difference, found.standard_error, 40) is None


def test_a_clear_difference_is_settled_and_its_p_value_is_not_zero():
    generator = np.random.default_rng(7)
    found = paired(generator.normal(5, 1, 100), generator.normal(0, 1, 100))
    assert is_settled(found)
    assert found.p_value == pytest.approx(1 / 2_001)


def test_both_the_p_value_and_the_interval_must_agree():
    assert not is_settled(Difference(1.0, 0.1, 2.0, 0.06, 0.5))
    assert not is_settled(Difference(1.0, -0.1, 2.0, 0.04, 0.5))
    assert is_settled(Difference(-1.0, -2.0, -0.1, 0.04, 0.5))


def test_rows_needed_gives_the_promised_power():
    difference, spread, num_rows = 0.2, 1.0, 50
    needed = rows_needed(difference, spread / math.sqrt(num_rows), num_rows)
    assert needed == math.ceil(((1.959964 + 0.841621) * spread / difference) ** 2)
    draws = np.random.default_rng(8).normal(difference, spread, size=(4_000, needed))
    z = draws.mean(axis=1) / (draws.std(axis=1) / math.sqrt(needed))
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.80, abs=0.03)


def test_rows_needed_is_always_more_than_there_are():
    assert rows_needed(1.0, 1e-6, 5) == 6


def test_nothing_and_unequal_rows_are_refused():
    with pytest.raises(RequestError, match="0 rows"):
        resampled_sums(np.empty((0, 2)), seed=0)
    with pytest.raises(RequestError, match="3 and 2 rows"):
        paired([1, 2, 3], [1, 2])


def test_ten_thousand_rows_stay_within_memory():
    import tracemalloc

    stats = np.ones((10_000, 2))
    tracemalloc.start()
    resampled_sums(stats, seed=0, num_resamples=800)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6
