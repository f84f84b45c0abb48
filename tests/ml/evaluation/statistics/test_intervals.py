import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from luthier.core.errors import RequestError
from luthier.core.records.bounds import REAL_LINE, UNIT, Bounds
from luthier.ml.evaluation.metrics.likelihood import Perplexity
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics, ratio
from luthier.ml.evaluation.metrics.reference_based import Bleu
from luthier.ml.evaluation.statistics import (
    Difference,
    bootstrap_interval,
    interval_of,
    is_settled,
    mcnemar,
    paired_bootstrap,
    resampled_sums,
    rows_needed,
)
from luthier.ml.evaluation.statistics.resampling import share_difference_ends, spread_of

VALUES = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=1, max_size=30)


def interval(values, seed=0, num_resamples=2_000, bounds=REAL_LINE):
    stats = mean_statistics(values)
    return bootstrap_interval(stats, mean_of_sums, bounds=bounds, seed=seed, num_resamples=num_resamples)


def paired(a, b, seed=0, num_resamples=2_000, bounds=REAL_LINE, clusters=None):
    a, b = mean_statistics(a), mean_statistics(b)
    return paired_bootstrap(
        a, b, mean_of_sums, bounds=bounds, seed=seed, num_resamples=num_resamples, clusters=clusters
    )


def test_the_interval_of_a_mean_is_that_of_normal_theory():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2_000)
    found = interval(values, num_resamples=10_000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05 * half)


@pytest.mark.parametrize("law", ["normal", "exponential"])
def test_about_95_of_100_intervals_cover_the_truth(law):
    """On 60 skewed values a percentile interval alone covers 93%; with t and the skew taken out it is 95%."""
    generator = np.random.default_rng(2)
    trials = 1_000
    covered = 0
    for trial in range(trials):
        values = generator.normal(1.0, 1.0, 60) if law == "normal" else generator.exponential(1.0, 60)
        found = interval(values, seed=trial, num_resamples=500)
        covered += found.low <= 1.0 <= found.high
    # 2.5 standard errors of a share over 1,000 trials.
    assert covered / trials == pytest.approx(0.95, abs=0.017)


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
def test_intervals_hold_their_figure_and_differences_mirror(values, seed):
    bounds = Bounds(0, math.inf) if min(values) >= 0 else REAL_LINE
    found = interval(values, seed=seed, num_resamples=200, bounds=bounds)
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9
    if min(values) >= 0:
        assert found.low >= 0
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
    monkeypatch.setattr("luthier.ml.evaluation.statistics.resampling._BLOCK_DRAWS", 7 * 3)
    assert resampled_sums(stats, seed=5, num_resamples=50) == pytest.approx(whole)
    assert not np.allclose(resampled_sums(stats, seed=6, num_resamples=50), whole)


def test_sums_are_those_of_the_rows_that_are_drawn_in_every_call():
    stats = np.random.default_rng(4).normal(size=(9, 2))
    expected = stats[np.random.default_rng(5).integers(0, 9, size=(40, 9))].sum(axis=1)
    for factor in (1.0, 1.0, -3.0):  # later calls have the draws of the first
        assert resampled_sums(factor * stats, seed=5, num_resamples=40) == pytest.approx(factor * expected)
    assert resampled_sums(stats[:8], seed=5, num_resamples=40).shape == (40, 2)


def test_each_resample_has_as_many_rows_as_the_data():
    sums = resampled_sums(np.ones((13, 1)), seed=0, num_resamples=100)
    assert (sums == 13).all()


def test_one_row_settles_nothing():
    found = paired([1.7], [0.2])
    assert (found.difference, found.low, found.high, found.p_value) == (1.5, 0.0, 1.5, 1.0)
    assert not is_settled(found)
    right = paired([1.0], [0.0])
    assert right.low < 0
    assert right.p_value == 1.0
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
    assert rows_needed(1.0, 1e-6, 50) == 51


def test_rows_needed_is_never_fewer_than_any_difference_takes():
    def p_value(num_rows):
        return paired(np.linspace(0.8, 0.9, num_rows), np.linspace(0.1, 0.15, num_rows), bounds=UNIT).p_value

    assert p_value(5) >= 0.05 > p_value(6)
    assert [rows_needed(0.7, 0.01, num_rows) for num_rows in (1, 3, 4)] == [6, 6, 6]


def test_none_of_30_right_is_not_certain():
    none, all_right = interval([0.0] * 30, bounds=UNIT), interval([1.0] * 30, bounds=UNIT)
    # Wilson's, a little wider than the rule of three (3 / 30).
    assert none == (0.0, 0.0, pytest.approx(0.114, abs=1e-3))
    assert all_right == (1.0, pytest.approx(1 - 0.114, abs=1e-3), 1.0)
    nobody = paired([0.0] * 30, [0.0] * 30)
    assert (nobody.low, nobody.high) == (pytest.approx(-0.114, abs=1e-3), pytest.approx(0.114, abs=1e-3))
    assert nobody.p_value == 1.0


def test_scores_of_0_and_1_on_a_longer_scale_are_no_share():
    """Of ten people who all gave 1 of 5, others may give more; 0.3 of 10 points may be above 1 on other rows."""
    lowest = interval([1.0] * 10, bounds=Bounds(1.0, 5.0))
    # As many others as Wilson's interval of 0 of 10 allows (0.2775), at worst with 5 points.
    assert lowest == (1.0, 1.0, pytest.approx(1 + 0.2775 * 4, abs=1e-3))
    few = interval([1.0] * 3 + [0.0] * 7, bounds=Bounds(0.0, 10.0))
    assert 0.0 <= few.low < few.value < few.high <= 10.0
    assert few.high > interval([1.0] * 3 + [0.0] * 7, bounds=UNIT).high
    assert interval([1.0] * 3 + [0.0] * 7) == interval([1.0] * 3 + [0.0] * 7, bounds=UNIT)


def test_a_fraction_with_the_same_end_in_every_row_is_not_certain_either():
    """Micro F1 of rows without any error; and sources whose rows are all wrong count once each."""
    perfect = np.tile([2.0, 0.0, 0.0], (20, 1))
    found = bootstrap_interval(
        perfect, lambda s: 2 * s[..., 0] / (2 * s[..., 0] + s[..., 1] + s[..., 2]), bounds=UNIT, seed=0
    )
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.839, abs=1e-3)
    wrong = bootstrap_interval(
        mean_statistics([0.0] * 30), mean_of_sums, bounds=UNIT, seed=0, clusters=[row // 10 for row in range(30)]
    )
    assert wrong.high == pytest.approx(0.5615, abs=1e-3)


def test_a_fraction_stays_between_0_and_1():
    found = interval([1.0, 0.9, 1.0, 0.7, 0.8], bounds=UNIT)
    assert 0.3 < found.low < found.value < 0.96 < found.high <= 1.0
    assert 0.0 <= interval([0.0, 0.1, 0.0, 0.3, 0.2], bounds=UNIT).low < 0.04


def test_the_p_value_of_shares_is_that_of_mcnemar():
    a = [1.0] * 9 + [0.0] * 3 + [1.0] * 10
    b = [0.0] * 9 + [1.0] * 3 + [1.0] * 10
    found = paired(a, b)
    assert found.p_value == pytest.approx(mcnemar(a, b))
    assert found.p_value == pytest.approx(binomtest(3, 12).pvalue)
    assert found.low < 0 < found.high


@pytest.mark.parametrize(("only_a", "only_b", "num_rows"), [(6, 1, 20), (0, 3, 30), (12, 8, 50), (20, 0, 20)])
def test_the_interval_of_a_difference_of_shares_ends_where_the_score_test_does(only_a, only_b, num_rows):
    """Under each end, the likeliest table with that difference, found by search, puts what was measured at 1.96."""
    low, high = share_difference_ends(only_a, only_b, num_rows, 0.025)
    assert -1 <= low <= (only_a - only_b) / num_rows <= high <= 1
    for end in {low, high} - {-1.0, 1.0}:
        share_b = np.linspace(max(0.0, -end), (1 - end) / 2, 200_001)[1:-1]
        neither = num_rows - only_a - only_b
        likelihood = only_a * np.log(share_b + end) + only_b * np.log(share_b)
        likelihood = likelihood + neither * np.log(1 - end - 2 * share_b)
        best = share_b[likelihood.argmax()]
        z = (only_a - only_b - num_rows * end) / math.sqrt(num_rows * (2 * best + end * (1 - end)))
        assert abs(z) == pytest.approx(1.959964, abs=2e-3)


def test_few_rows_that_differ_settle_nothing_however_many_are_equal():
    """Five equal gains among 200 rows are what five coins of one side are."""
    found = paired([0.5] * 5 + [0.2] * 195, [0.3] * 5 + [0.2] * 195)
    assert found.p_value >= 2.0**-4
    assert not is_settled(found)


def test_rows_of_one_source_count_together():
    generator = np.random.default_rng(9)
    own = generator.normal(size=12)
    clusters = [f"document {row // 20}" for row in range(240)]
    values = np.repeat(own, 20) + 0.01 * generator.normal(size=240)
    alone = interval(values)
    together = bootstrap_interval(mean_statistics(values), mean_of_sums, bounds=REAL_LINE, seed=0, clusters=clusters)
    as_documents = interval(own)
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert together.high - together.low == pytest.approx(as_documents.high - as_documents.low, rel=0.05)
    sums = resampled_sums(np.ones((240, 1)), seed=0, num_resamples=50, clusters=clusters)
    assert (sums % 20 == 0).all()
    with pytest.raises(RequestError, match="3 sources for 240 rows"):
        resampled_sums(mean_statistics(values), seed=0, clusters=["a", "b", "c"])


def test_a_source_of_its_own_for_each_row_changes_nothing():
    stats = np.random.default_rng(10).normal(size=(15, 2))
    assert resampled_sums(stats, seed=3, num_resamples=20, clusters=list(range(15))) == pytest.approx(
        resampled_sums(stats, seed=3, num_resamples=20)
    )


def test_without_rows_only_the_percentiles_are_left():
    stats = mean_statistics(np.random.default_rng(11).exponential(size=20))
    sums = resampled_sums(stats, seed=0)
    bounds = Bounds(0, math.inf)
    plain = interval_of(stats.sum(axis=0), sums, mean_of_sums, bounds=bounds)
    whole = interval_of(stats.sum(axis=0), sums, mean_of_sums, bounds=bounds, rows=stats)
    assert whole.low <= plain.low < plain.high < whole.high


def test_a_figure_that_one_row_makes_is_left_to_the_bootstrap():
    """Only one row has anything to divide by: leaving it out leaves no figure."""
    stats = np.array([[1.0, 2.0], *([[0.0, 0.0]] * 9)])
    with np.errstate(all="ignore"):
        found = bootstrap_interval(
            stats, lambda s: np.where(s[..., 1] > 0, s[..., 0] / s[..., 1], np.nan), bounds=UNIT, seed=0
        )
    assert found.value == 0.5


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


# ---- figures near the ends of what they can be

PERCENT, PERPLEXITIES = Bounds(0.0, 100.0), Bounds(1.0, math.inf)
SHARES_OF_100 = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=2, max_size=12)


def bleu_rows(generator, num_rows, ease):
    """Statistics of answers whose n-grams match more or less readily."""
    length = generator.integers(8, 40, num_rows).astype(float)
    totals = np.stack([length - order for order in range(4)], axis=1)
    shares = np.clip(generator.gamma(0.4, ease, (num_rows, 1)) * (0.9, 0.7, 0.5, 0.4), 0, 1)
    return np.concatenate([length[:, None], length[:, None], np.round(shares * totals), totals], axis=1)


def test_bleu_of_six_rows_stays_between_0_and_100_and_its_differences_between_their_ends():
    """What was shown once: BLEU [0, 151], and differences of -122."""
    generator, bleu, outside = np.random.default_rng(12), Bleu(), 0
    for trial in range(60):
        a, b = bleu_rows(generator, 6, 2.0), bleu_rows(generator, 6, 0.4)
        one = bootstrap_interval(a, bleu.aggregate, bounds=PERCENT, seed=trial, num_resamples=400)
        assert 0 <= one.low <= one.value <= one.high <= 100
        found = paired_bootstrap(a, b, bleu.aggregate, bounds=PERCENT, seed=trial, num_resamples=400)
        assert -100 <= found.low <= found.difference <= found.high <= 100
        plain = spread_of(a, bleu.aggregate).ends(one.value, 0.025, REAL_LINE)
        outside += plain[0] < 0 or plain[1] > 100
    assert outside > 20, "without bounds these rows do leave the scale"


def test_a_perplexity_is_never_below_1():
    generator = np.random.default_rng(13)
    for trial in range(60):
        tokens = generator.integers(2, 30, 6).astype(float)
        stats = np.stack([tokens * generator.lognormal(-1.0, 1.0, 6), tokens], axis=1)
        found = bootstrap_interval(stats, Perplexity().aggregate, bounds=PERPLEXITIES, seed=trial, num_resamples=400)
        assert 1 <= found.low <= found.value <= found.high < math.inf


@given(SHARES_OF_100, st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_every_interval_of_bounded_rows_lies_inside_its_bounds_and_agrees_with_its_p_value(values, seed):
    found = interval(values, seed=seed, num_resamples=200, bounds=PERCENT)
    assert 0 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 100
    less = paired(values, [value / 3 for value in values], seed=seed, num_resamples=200, bounds=PERCENT)
    assert -100 <= less.low <= less.high <= 100
    assert (less.p_value < 0.05) == (less.low > 0 or less.high < 0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_shares_agree_with_their_p_value_too(rows):
    a, b = ([float(row[side]) for row in rows] for side in (0, 1))
    found = paired(a, b, num_resamples=200, bounds=UNIT)
    assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
    assert -1 <= found.low <= found.difference <= found.high <= 1


@pytest.mark.parametrize(("only_a", "num_rows"), [(4, 30), (5, 40)])
def test_where_mcnemar_is_not_sure_the_interval_reaches_to_0(only_a, num_rows):
    """Tango's interval of five rows against none leaves out 0, at p = 0.0625."""
    found = paired([1.0] * num_rows, [0.0] * only_a + [1.0] * (num_rows - only_a), bounds=UNIT)
    assert found.p_value > 0.05
    assert found.low == 0.0


def test_rows_that_all_say_the_same_are_not_certain():
    """Of 20 equal rows, as many others as Wilson's interval of 0 of 20 allows may say anything."""
    found = interval([0.4] * 20, bounds=UNIT)
    others = 0.1611
    assert (found.low, found.high) == (
        pytest.approx(0.4 - others * 0.4, abs=1e-3),
        pytest.approx(0.4 + others * 0.6, abs=1e-3),
    )


def test_a_difference_that_is_the_same_in_every_row_is_not_certain():
    """Of 20 equal differences, as many others as Wilson's interval of 0 of 20 allows may have none, or the largest."""
    ahead, behind = paired([1.0] * 20, [0.5] * 20, bounds=UNIT), paired([0.5] * 20, [1.0] * 20, bounds=UNIT)
    others = 0.1611
    assert ahead.low == pytest.approx(0.5 * (1 - others), abs=1e-3)
    assert ahead.high == pytest.approx(0.5 + others * 0.5, abs=1e-3)
    assert (behind.low, behind.high) == (pytest.approx(-ahead.high), pytest.approx(-ahead.low))
    assert is_settled(ahead)
    few, none = paired([1.0] * 4, [0.5] * 4, bounds=UNIT), paired([0.5] * 4, [0.5] * 4, bounds=UNIT)
    assert few.low == 0.0
    assert few.high > 0.5
    assert (none.low, none.high, none.p_value) == (0.0, 0.0, 1.0)


def test_rows_that_a_figure_does_not_look_at_make_it_no_surer():
    """3 of 5 rows that count, among 400 that do not: Wilson's interval of 3 of 5."""
    stats = np.zeros((405, 2))
    stats[:5] = mean_statistics([1, 1, 1, 0, 0])
    found = bootstrap_interval(stats, lambda sums: ratio(sums[..., 0], sums[..., 1]), bounds=UNIT, seed=0)
    assert (found.low, found.high) == (pytest.approx(0.2307, abs=1e-3), pytest.approx(0.8824, abs=1e-3))


def test_one_row_or_one_source_says_next_to_nothing_of_others():
    """Nearly any mean of others may be there: such a figure reaches no bar, however high it is."""
    one = interval([0.9], bounds=UNIT)
    # Wilson's interval of 0 of 1 ends at z^2 / (1 + z^2).
    others = 1.959964**2 / (1 + 1.959964**2)
    assert (one.low, one.high) == (pytest.approx(0.9 * (1 - others)), pytest.approx(0.9 + 0.1 * others))
    stats, together = mean_statistics([0.8, 0.9, 1.0, 0.9]), ["a contract"] * 4
    source = bootstrap_interval(stats, mean_of_sums, bounds=UNIT, seed=0, num_resamples=200, clusters=together)
    assert (source.value, source.low, source.high) == tuple(map(pytest.approx, one))
    against = mean_statistics([0.1, 0.2, 0.3, 0.2])
    found = paired_bootstrap(stats, against, mean_of_sums, bounds=UNIT, seed=0, num_resamples=200, clusters=together)
    assert (found.low, found.p_value) == (0.0, 1.0)
    assert found.high > 0.9


def test_sources_on_which_two_systems_agree_leave_as_much_open_as_as_many_rows():
    """Copies of rows within a source are no more evidence that two systems always agree."""
    alone = paired([1.0] * 20 + [0.0] * 4, [1.0] * 20 + [0.0] * 4, bounds=UNIT)
    right = [1.0] * 180 + [0.0] * 36
    together = paired(right, right, bounds=UNIT, clusters=[place // 9 for place in range(216)])
    assert (together.difference, together.p_value) == (0.0, 1.0)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high), abs=1e-6)
    assert alone.high > 0.1
