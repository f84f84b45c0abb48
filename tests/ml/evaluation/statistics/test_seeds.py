import numpy as np
import pytest

from luthier.core.errors import RequestError
from luthier.core.records.bounds import REAL_LINE, UNIT
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.statistics import (
    bootstrap_interval,
    difference_over_seeds,
    is_settled,
    over_seeds,
    paired_bootstrap,
)

ROWS = np.random.default_rng(0).normal(0.6, 0.2, size=60)


def trained(*shifts):
    return [mean_statistics(ROWS + shift) for shift in shifts]


def test_the_figure_is_the_mean_over_trainings():
    found = over_seeds(trained(-0.1, 0.0, 0.1), mean_of_sums, bounds=REAL_LINE, seed=0)
    assert found.value == pytest.approx(ROWS.mean())
    assert found.low < found.value < found.high


def test_trainings_that_agree_leave_the_rows_alone():
    same = over_seeds(trained(0.0, 0.0), mean_of_sums, bounds=REAL_LINE, seed=0)
    one = bootstrap_interval(mean_statistics(ROWS), mean_of_sums, bounds=REAL_LINE, seed=0)
    assert same == pytest.approx(one)


def test_two_trainings_tell_next_to_nothing_of_their_spread():
    two = over_seeds(trained(-0.02, 0.02), mean_of_sums, bounds=REAL_LINE, seed=0)
    five = over_seeds(trained(-0.02, 0.02, 0.0, -0.02, 0.02), mean_of_sums, bounds=REAL_LINE, seed=0)
    # 12.7 standard errors of 0.02 against 2.8 of 0.009.
    assert two.high - two.value > 0.25
    assert five.high - five.value < 0.08


def test_a_difference_that_the_seed_alone_could_make_is_not_settled():
    base = [mean_statistics(ROWS - 0.05)]
    steady = difference_over_seeds(trained(0.0, 0.005, -0.005), base, mean_of_sums, bounds=REAL_LINE, seed=0)
    assert steady.difference == pytest.approx(0.05)
    assert is_settled(steady)
    shaky = difference_over_seeds(trained(-0.1, 0.1, 0.0), base, mean_of_sums, bounds=REAL_LINE, seed=0)
    assert shaky.difference == pytest.approx(0.05)
    assert not is_settled(shaky)
    assert shaky.p_value > 0.05 > steady.p_value
    back = difference_over_seeds(base, trained(-0.1, 0.1, 0.0), mean_of_sums, bounds=REAL_LINE, seed=0)
    assert (back.low, back.high) == (pytest.approx(-shaky.high), pytest.approx(-shaky.low))


@pytest.mark.parametrize("shift", [0.01, 0.03, 0.05, 0.1])
def test_the_p_value_says_what_the_interval_says(shift):
    generator = np.random.default_rng(3)
    a = [mean_statistics(ROWS + shift + generator.normal(0, 0.1, 60)) for _ in range(3)]
    found = difference_over_seeds(a, [mean_statistics(ROWS)], mean_of_sums, bounds=REAL_LINE, seed=0)
    assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_sources_count_whole():
    clusters = [row // 10 for row in range(60)]
    a = [mean_statistics(np.repeat(ROWS[:6], 10) + shift) for shift in (0.0, 0.001)]
    alone, whole = (over_seeds(a, mean_of_sums, bounds=REAL_LINE, seed=0, clusters=c) for c in (None, clusters))
    assert whole.high - whole.low > 2 * (alone.high - alone.low)


def test_too_few_trainings_and_different_rows_are_refused():
    with pytest.raises(RequestError, match="1 trainings"):
        over_seeds(trained(0.0), mean_of_sums, bounds=REAL_LINE, seed=0)
    with pytest.raises(RequestError, match="paired_bootstrap"):
        difference_over_seeds(trained(0.0), trained(0.1), mean_of_sums, bounds=REAL_LINE, seed=0)
    with pytest.raises(RequestError, match="60 and 59 rows"):
        over_seeds([mean_statistics(ROWS), mean_statistics(ROWS[1:])], mean_of_sums, bounds=REAL_LINE, seed=0)
    with pytest.raises(RequestError, match="60 and 59 rows"):
        difference_over_seeds(trained(0.0, 0.1), [mean_statistics(ROWS[1:])], mean_of_sums, bounds=REAL_LINE, seed=0)


def test_two_trainings_do_not_leave_the_scale():
    """12.7 standard errors of 0.1 around 0.9 would be 2.17."""
    near_the_top = [mean_statistics(np.clip(ROWS + 0.3 + shift, 0, 1)) for shift in (-0.1, 0.1)]
    found = over_seeds(near_the_top, mean_of_sums, bounds=UNIT, seed=0)
    assert 0 <= found.low < found.value < found.high <= 1
    base = [mean_statistics(np.clip(ROWS - 0.4, 0, 1))]
    less = difference_over_seeds(near_the_top, base, mean_of_sums, bounds=UNIT, seed=0)
    assert -1 <= less.low < less.difference < less.high <= 1
    assert (less.p_value < 0.05) == (less.low > 0)


def test_two_rows_settle_nothing_however_steady_the_seeds_are():
    tuned = [mean_statistics(np.array([0.7, 0.7])) for _ in range(2)]
    base = [mean_statistics(np.array([0.2, 0.2]))]
    found = difference_over_seeds(tuned, base, mean_of_sums, bounds=UNIT, seed=0)
    once = paired_bootstrap(tuned[0], base[0], mean_of_sums, bounds=UNIT, seed=0)
    assert found == pytest.approx(once)
    assert found.p_value >= 0.5
    assert not is_settled(found)
    nearly = [tuned[0], mean_statistics(np.array([0.7, 0.70001]))]
    shaken = difference_over_seeds(nearly, base, mean_of_sums, bounds=UNIT, seed=0)
    assert shaken.p_value >= 0.5
    assert not is_settled(shaken)


def test_many_rows_that_all_say_the_same_are_settled():
    right, wrong = mean_statistics(np.ones(50)), mean_statistics(np.zeros(50))
    found = difference_over_seeds([right, right], [wrong], mean_of_sums, bounds=UNIT, seed=0)
    assert found == pytest.approx(paired_bootstrap(right, wrong, mean_of_sums, bounds=UNIT, seed=0))
    assert is_settled(found)
    one_less = mean_statistics(np.append(np.ones(49), 0.0))
    # Three trainings: with two, 12.7 standard errors of the seeds alone reach far.
    spread = difference_over_seeds([right, right, one_less], [wrong], mean_of_sums, bounds=UNIT, seed=0)
    assert is_settled(spread)
    assert found.p_value <= spread.p_value < 0.05


@pytest.mark.parametrize("num_rows", [2, 3, 4, 5, 8])
def test_seeds_never_make_surer_than_the_rows(num_rows):
    generator = np.random.default_rng(num_rows)
    a = [mean_statistics(generator.uniform(0.6, 0.9, num_rows)) for _ in range(3)]
    base = mean_statistics(generator.uniform(0.1, 0.3, num_rows))
    found = difference_over_seeds(a, [base], mean_of_sums, bounds=UNIT, seed=0)
    assert found.p_value >= 2.0 ** (1 - num_rows)
    assert (found.p_value < 0.05) == (found.low > 0)
