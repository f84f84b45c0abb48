"""Which share of rows can be answered alone, and how right these are."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.errors import RequestError
from luthier.ml.evaluation.metrics.selective import (
    clopper_pearson,
    risk_coverage_curve,
    selective_accuracy,
    threshold_for_accuracy,
)


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
