import numpy as np
import pytest

from luthier.core.errors import RequestError
from luthier.ml.evaluation.agreement import (
    cohen_kappa,
    deviations,
    drift_of,
    fleiss_kappa,
    krippendorff_alpha,
    pearson,
    spearman,
)

# Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, example C with its missing ratings as 0.
PAPER = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]
RATINGS = [[value or None for value in rater] for rater in PAPER]
# The worked example of Fleiss' kappa in Wikipedia: 10 items, 14 raters, 5 labels.
FLEISS = [
    *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
    *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
]


def pairs(table, labels):
    cells = [(x, y) for i, x in enumerate(labels) for j, y in enumerate(labels) for _ in range(table[i][j])]
    return [x for x, _ in cells], [y for _, y in cells]


def test_cohens_kappa_is_that_of_worked_examples():
    assert cohen_kappa(*pairs([[20, 5], [10, 15]], "yn")).value == pytest.approx(0.4)
    # Artstein and Poesio, 2008, section 2.3.
    assert cohen_kappa(*pairs([[20, 20], [10, 50]], "SI")).value == pytest.approx(0.348, abs=5e-4)


@pytest.mark.parametrize(("weights", "expected"), [(None, 0.9315), ("linear", 0.9412), ("quadratic", 0.9541)])
def test_weighted_kappa_is_that_of_scikit_learns_own_tests(weights, expected):
    a, b = np.repeat([0, 1, 2], [46, 44, 10]), np.repeat([0, 1, 2], [50, 40, 10])
    assert cohen_kappa(a, b, weights=weights).value == pytest.approx(expected, abs=5e-5)


def test_labels_that_nobody_gave_count_as_steps_between():
    a, b = [1, 1, 5, 5, 2], [1, 2, 5, 1, 2]
    scale = cohen_kappa(a, b, weights="quadratic", labels=[1, 2, 3, 4, 5]).value
    assert scale != pytest.approx(cohen_kappa(a, b, weights="quadratic").value)
    with pytest.raises(RequestError, match=r"labels \['5'\]"):
        cohen_kappa(a, b, labels=[1, 2])


def test_fleiss_kappa_is_that_of_its_worked_example():
    found = fleiss_kappa(FLEISS)
    assert found.value == pytest.approx(0.210, abs=5e-4)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_krippendorffs_own_example(level, expected):
    found = krippendorff_alpha(RATINGS, level)
    assert found.value == pytest.approx(expected, abs=5e-4)
    assert found.low < found.value < found.high <= 1.0


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_that_of_the_reference_package(level):
    reference = pytest.importorskip("krippendorff")
    generator = np.random.default_rng(0)
    for _ in range(10):
        truth = generator.integers(1, 6, size=20)
        ratings = np.clip(truth + generator.integers(-1, 2, size=(4, 20)), 1, 5).astype(float)
        ratings[generator.random(ratings.shape) < 0.3] = np.nan
        expected = reference.alpha(reliability_data=ratings, level_of_measurement=level)
        assert krippendorff_alpha(ratings, level).value == pytest.approx(expected, abs=1e-9)


def test_full_agreement_is_not_certain():
    a = ["good", "bad"] * 10
    for found in (cohen_kappa(a, a), krippendorff_alpha([a, a], "nominal"), fleiss_kappa([[3, 0], [0, 3]] * 10)):
        assert (found.value, found.high) == (pytest.approx(1.0), pytest.approx(1.0))
        # Wilson: 20 of 20 means at least 84%, and half of what is left over is chance.
        assert found.low == pytest.approx(1 - 2 * (1 - 0.839), abs=0.01)


def test_the_interval_of_kappa_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        truth = generator.integers(0, 2, size=40)
        a, b = (np.where(generator.random(40) < 0.85, truth, 1 - truth) for _ in range(2))
        found = cohen_kappa(a.tolist(), b.tolist())
        held += found.low <= 0.49 <= found.high  # (0.85^2 + 0.15^2 - 0.5) / 0.5
    assert 0.90 <= held / 200 <= 0.99


def test_agreement_that_cannot_be_told_from_chance_is_not_a_number():
    undefined = [
        cohen_kappa([1, 1, 1], [1, 1, 1]),
        fleiss_kappa([[3, 0], [3, 0]]),
        krippendorff_alpha([[3, 3], [3, None]], "interval"),
        krippendorff_alpha([[1, None], [None, 2]], "nominal"),
    ]
    assert np.isnan(undefined).all()


def test_what_is_no_table_of_ratings_is_refused():
    with pytest.raises(RequestError, match="not numbers"):
        krippendorff_alpha([["a", "b"], ["a", "a"]], "interval")
    with pytest.raises(RequestError, match="different numbers of items"):
        krippendorff_alpha([[1, 2], [1]], "nominal")
    with pytest.raises(RequestError, match="2 and 1 ratings"):
        cohen_kappa([1, 2], [1])
    with pytest.raises(RequestError, match="same number of ratings"):
        fleiss_kappa([[2, 1], [1, 1]])


def test_correlations_are_the_textbook_ones_with_intervals_about_them():
    generator = np.random.default_rng(2)
    x = generator.normal(size=100)
    y = 0.6 * x + 0.8 * generator.normal(size=100)
    found = pearson(x, y)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    half = 1.96 / np.sqrt(97)
    assert np.arctanh(found.low) == pytest.approx(np.arctanh(found.value) - half, abs=0.06)
    assert np.arctanh(found.high) == pytest.approx(np.arctanh(found.value) + half, abs=0.06)
    ranked = spearman(np.exp(x), y)
    assert ranked.value == pytest.approx(spearman(x, y).value)
    assert ranked.low < ranked.value < ranked.high


def test_a_full_correlation_of_few_items_is_not_certain():
    found = spearman([1, 2, 3, 4, 5], [2, 3, 5, 7, 11])
    assert found.value == pytest.approx(1.0)
    assert found.low < 0.5
    assert spearman([1, 2, 3], [1, 3, 2])[1:] == (-1.0, 1.0)
    for x in ([3, 3, 3, 3, 3], [1, 2, 3]):
        with pytest.raises(RequestError, match="at least three"):
            pearson(x, [1, 2, 3, 4, 5])


def test_intervals_of_correlations_hold_the_truth():
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        x = generator.normal(size=25)
        found = pearson(x, 0.6 * x + 0.8 * generator.normal(size=25))
        held += found.low <= 0.6 <= found.high
    assert 0.90 <= held / 200 <= 0.995


def test_drift_is_found_in_a_rater_who_grows_milder():
    generator = np.random.default_rng(4)
    truth = generator.integers(1, 6, size=60).astype(float)
    steady = np.clip(truth + generator.normal(0, 0.5, size=(3, 60)), 1, 5)
    milder = truth + np.linspace(-1, 1, 60)
    apart = deviations([*steady, milder])
    found = drift_of(apart[3])
    assert found.low < 2 / 60 < found.high
    assert found.p_value < 0.001 < 0.02 < drift_of([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).p_value
    assert drift_of([0.5] * 5) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(RequestError, match="2 values"):
        drift_of([1.0, float("nan"), 2.0])


def test_deviations_are_from_the_others_alone():
    found = deviations([[1.0, 2.0, np.nan], [3.0, np.nan, 4.0], [5.0, np.nan, 2.0]])
    assert found[0, 0] == -3.0
    assert found[2, 0] == 3.0
    assert np.isnan(found[0, 1])
    assert found[1, 2] == 2.0
