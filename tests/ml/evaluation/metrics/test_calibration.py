"""Calibration of class probabilities, and which share of rows can be answered alone."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.errors import RequestError
from luthier.ml.evaluation.metrics.calibration import (
    bins_of,
    brier_score,
    clopper_pearson,
    confidence_of,
    expected_calibration_error,
    reliability_bins,
    risk_coverage_curve,
    selective_accuracy,
    softmax,
    threshold_for_accuracy,
)


def two_classes(rng: np.random.Generator, num_rows: int, off_by: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose confidence is too high by `off_by`: [rows, 2] and [rows]."""
    confidence = rng.uniform(0.55, 0.95, num_rows)
    labels = (rng.random(num_rows) > confidence - off_by).astype(int)
    return np.stack([confidence, 1 - confidence], axis=1), labels


@pytest.mark.parametrize("off_by", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("num_rows", [40, 200])
def test_the_interval_of_the_calibration_error_holds_the_truth(num_rows: int, off_by: float) -> None:
    rng, held, debiased, plain = np.random.default_rng(3), 0, [], []
    for _ in range(200):
        given, labels = two_classes(rng, num_rows, off_by)
        found = expected_calibration_error(given, labels)
        held += found.low <= off_by <= found.high
        assert found.low <= found.value <= found.high
        debiased.append(found.value)
        plain.append(expected_calibration_error(given, labels, debiased=False).value)
    assert held >= 0.9 * 200
    assert abs(np.mean(debiased) - off_by) < abs(np.mean(plain) - off_by)


def test_calibration_error_and_brier_score_by_hand() -> None:
    given = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    labels = np.array([0, 1, 0, 1])
    # Too few rows for more than one bin of equal mass: mean confidence 0.8, three of four right.
    assert expected_calibration_error(given, labels, debiased=False).value == pytest.approx(0.05)
    by_width = expected_calibration_error(given, labels, bins="equal_width", debiased=False).value
    # 0.9: two rows, one right; 0.6 and 0.8: one row each, right.
    assert by_width == pytest.approx((2 * 0.4 + 0.4 + 0.2) / 4)
    assert brier_score(given, labels).value == pytest.approx((0.02 + 1.62 + 0.32 + 0.08) / 4)


def test_sure_and_wrong_is_not_calibrated() -> None:
    given = np.array([[1.0, 0.0]] * 30)
    found = expected_calibration_error(given, [0] * 20 + [1] * 10)
    assert found.low > 0
    assert expected_calibration_error(given, [0] * 30) == (0.0, 0.0, 0.0)


def test_bins_of_equal_mass_never_divide_equal_confidences() -> None:
    confidence = np.array([0.5] * 35 + [0.7] * 20 + [0.9] * 45)
    found = bins_of(confidence)
    assert [len(set(found[confidence == value].tolist())) for value in (0.5, 0.7, 0.9)] == [1, 1, 1]
    drawn = reliability_bins(np.stack([confidence, 1 - confidence], axis=1), np.zeros(100))
    assert sum(one.num_rows for one in drawn) == 100
    assert [one.confidence for one in drawn] == sorted(one.confidence for one in drawn)
    assert set(bins_of(np.linspace(0, 1, 200)).tolist()) == set(range(10))
    assert set(bins_of(np.linspace(0, 1, 19)).tolist()) == {0}


def test_one_class_and_a_label_that_is_no_class() -> None:
    confidence, is_right = confidence_of([[1.0], [1.0]], [0, 5])
    assert (confidence.tolist(), is_right.tolist()) == ([1.0, 1.0], [1.0, 0.0])
    # An own label that is no class is a distance of 1 from every certainty.
    assert brier_score([[1.0], [1.0]], [0, 5]).value == pytest.approx(0.5)


def test_the_curve_has_a_point_for_each_confidence() -> None:
    curve = risk_coverage_curve([0.9, 0.5, 0.9, 0.7], [1, 0, 0, 1])
    assert curve.threshold.tolist() == [0.9, 0.7, 0.5]
    assert curve.share.tolist() == [0.5, 0.75, 1.0]
    assert curve.accuracy.tolist() == pytest.approx([0.5, 2 / 3, 0.5])


def test_the_lowest_threshold_that_reaches_the_accuracy() -> None:
    confidence = np.linspace(1.0, 0.51, 50)
    is_right = np.array([1] * 30 + [0, 1] * 10)
    threshold = threshold_for_accuracy(confidence, is_right, 0.9)
    # (34 + 1) / (37 + 2) is below 0.9, and so are all after it; (33 + 1) / (35 + 2) is above.
    assert threshold is not None
    answered = confidence >= threshold
    assert (is_right[answered].sum() + 1) / (answered.sum() + 2) >= 0.9
    assert threshold_for_accuracy([0.9] * 7, [1] * 7, 0.9) is None
    assert threshold_for_accuracy([0.9] * 8, [1] * 8, 0.9) == 0.9
    assert threshold_for_accuracy([0.9, 0.8] * 20, [0] * 40, 0.9) is None


@pytest.mark.parametrize("off_by", [0.0, 0.1])
@pytest.mark.parametrize("num_rows", [40, 80, 300])
@pytest.mark.parametrize("num_validation", [0, 60])
def test_the_accuracy_of_what_is_answered_alone_is_not_claimed_too_high(
    num_rows: int, off_by: float, num_validation: int
) -> None:
    """By a threshold from other folds, or from validation rows."""
    rng, too_high, num_found = np.random.default_rng(5), 0, 0
    for number in range(400):
        confidence = rng.uniform(0.5, 1, num_rows)
        is_right = (rng.random(num_rows) < confidence - off_by).astype(int)
        sure = rng.uniform(0.5, 1, num_validation)
        others = (sure, (rng.random(num_validation) < sure - off_by).astype(int)) if num_validation else None
        found = selective_accuracy(confidence, is_right, 0.85, chosen_on=others, seed=number)
        if found.threshold is None or found.accuracy is None:
            continue
        num_found += 1
        # What is right above the threshold that is used, in the long run: the mean of 1 and the threshold, less.
        too_high += found.accuracy.low > (1 + max(0.5, found.threshold)) / 2 - off_by
    assert num_found > 100
    assert too_high <= 0.05 * num_found


def test_nothing_can_be_answered_alone_where_confidence_says_nothing() -> None:
    found = selective_accuracy([0.9] * 40, [1, 0] * 20, 0.9)
    assert (found.threshold, found.num_answered, found.accuracy) == (None, 0, None)
    assert found.share.value == 0
    assert 0 < found.share.high < 0.1


def test_all_can_be_answered_alone() -> None:
    found = selective_accuracy(np.linspace(0.5, 1, 60), [1] * 60, 0.9)
    assert found.threshold == 0.5
    assert found.num_answered > 55
    assert found.accuracy is not None
    assert (found.accuracy.value, found.accuracy.high) == (1.0, 1.0)
    assert found.accuracy.low > 0.9


@pytest.mark.parametrize(
    ("num_right", "num_rows", "low", "high"),
    # The first three as in Clopper and Pearson's charts and every table since: 10 rows, and none or all of 20.
    [(5, 10, 0.1871, 0.8129), (0, 20, 0.0, 0.1684), (20, 20, 0.8316, 1.0), (49, 50, 0.8935, 0.9995)],
)
def test_clopper_and_pearsons_interval(num_right: int, num_rows: int, low: float, high: float) -> None:
    assert clopper_pearson(num_right, num_rows) == pytest.approx((num_right / num_rows, low, high), abs=1e-4)


def test_likelihoods_of_whole_answers_do_not_underflow() -> None:
    assert softmax(np.array([[-5000.0, -5001.0]]))[0, 0] == pytest.approx(1 / (1 + np.exp(-1)))


@pytest.mark.parametrize(
    ("given", "labels", "what"),
    [
        ([[0.5, 0.6]], [0], "sum to 1"),
        ([[float("nan"), 0.5]], [0], "finite"),
        ([[-0.5, 1.5]], [0], "from 0 on"),
        ([[0.5, 0.5]], [0, 1], "rows, classes"),
        ([0.5, 0.5], [0, 1], "rows, classes"),
        (np.empty((0, 2)), [], "at least one row"),
    ],
)
def test_what_are_no_probabilities_is_refused(given: object, labels: object, what: str) -> None:
    with pytest.raises(RequestError, match=what):
        expected_calibration_error(given, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("confidence", "is_right", "accuracy", "what"),
    [
        ([0.5, float("nan")], [1, 0], 0.9, "finite"),
        ([0.5, 0.6], [1, 0.5], 0.9, "0 or 1"),
        ([0.5], [1, 0], 0.9, "each row"),
        ([0.5, 0.6], [1, 0], 1.0, "below 1"),
        ([0.5], [1], 0.9, "at least two"),
    ],
)
def test_answers_that_cannot_be_judged_are_refused(
    confidence: list[float], is_right: list[float], accuracy: float, what: str
) -> None:
    with pytest.raises(RequestError, match=what):
        selective_accuracy(confidence, is_right, accuracy)
