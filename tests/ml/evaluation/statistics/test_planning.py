import numpy as np
import pytest

from luthier.core.records.bounds import REAL_LINE, UNIT
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.statistics import is_settled, minimum_detectable_difference, paired_bootstrap


def test_the_smallest_difference_is_found_in_four_of_five_comparisons():
    generator = np.random.default_rng(0)
    base = generator.normal(size=100)
    smallest = minimum_detectable_difference(mean_statistics(base), mean_of_sums, bounds=REAL_LINE, seed=0)
    assert smallest == pytest.approx(2.8 / 10, rel=0.2)
    settled = 0
    for trial in range(200):
        hard = generator.normal(0, np.sqrt(0.5), 100)  # systems whose rows correlate by a half
        a, b = (hard + generator.normal(shift, np.sqrt(0.5), 100) for shift in (0.28, 0.0))
        found = paired_bootstrap(
            mean_statistics(a), mean_statistics(b), mean_of_sums, bounds=REAL_LINE, seed=trial, num_resamples=500
        )
        settled += is_settled(found)
    assert settled / 200 == pytest.approx(0.8, abs=0.1)


def test_it_falls_with_the_root_of_the_rows_and_grows_where_rows_share_a_source():
    values = np.random.default_rng(1).normal(size=400)
    many = minimum_detectable_difference(mean_statistics(values), mean_of_sums, bounds=REAL_LINE, seed=0)
    few = minimum_detectable_difference(mean_statistics(values[:100]), mean_of_sums, bounds=REAL_LINE, seed=0)
    assert few / many == pytest.approx(2, rel=0.2)
    stats = mean_statistics(np.repeat(values[:40], 10))
    shared = minimum_detectable_difference(
        stats, mean_of_sums, bounds=REAL_LINE, seed=0, clusters=[row // 10 for row in range(400)]
    )
    assert shared > 2 * minimum_detectable_difference(stats, mean_of_sums, bounds=REAL_LINE, seed=0)


def test_a_base_that_gets_nothing_right_does_not_promise_to_see_everything():
    assert minimum_detectable_difference(mean_statistics([0.0] * 30), mean_of_sums, bounds=UNIT, seed=0) > 0.05
