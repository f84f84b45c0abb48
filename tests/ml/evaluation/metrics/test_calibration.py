"""Calibration of class probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.errors import RequestError
from luthier.ml.evaluation.metrics.calibration import (
    bins_of,
    brier_score,
    confidence_of,
    expected_calibration_error,
    reliability_bins,
    softmax,
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


@pytest.mark.parametrize("off_by", [0.0, 0.1])
def test_copies_of_rows_in_groups_are_no_more_evidence_of_calibration(off_by: float) -> None:
    rng, held = np.random.default_rng(4), 0
    for _ in range(100):
        given, labels = two_classes(rng, 60, off_by)
        alone = expected_calibration_error(given, labels)
        copies, groups = np.tile(np.arange(60), 9), np.tile(np.arange(60), 9).tolist()
        copied = expected_calibration_error(given[copies], labels[copies], clusters=groups)
        assert copied.value == pytest.approx(alone.value, abs=0.02)
        assert copied.high >= alone.high - 0.02
        held += copied.low <= off_by <= copied.high
        bins = reliability_bins(given[copies], labels[copies], clusters=groups)
        assert len(bins) == len(reliability_bins(given, labels))
        counted = expected_calibration_error(given[copies], labels[copies])
        assert counted.high - counted.low < copied.high - copied.low
    assert held >= 90


def test_groups_of_one_row_change_nothing() -> None:
    given, labels = two_classes(np.random.default_rng(5), 80, 0.1)
    found = expected_calibration_error(given, labels)
    assert expected_calibration_error(given, labels, clusters=list(range(80))) == pytest.approx(found, abs=0.01)
