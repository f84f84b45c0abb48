"""Figures of task heads: AUROC against scikit-learn, its interval by how often it holds the truth; numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from luthier.ml.evaluation.task_head import absolute_error, area_under_curve, auroc


def _drawn(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    places = draw.integers(classes, size=rows)
    own = np.eye(classes)[places]
    scores = np.exp(draw.normal(size=(rows, classes)) + own)
    return scores / scores.sum(axis=1, keepdims=True), own


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_area_is_that_of_scikit_learn(classes: int) -> None:
    from sklearn.metrics import roc_auc_score

    probabilities, own = _drawn(200, classes, seed=classes)
    found = auroc(probabilities, own)
    assert found is not None
    assert found.value == pytest.approx(roc_auc_score(own, probabilities, average="macro"))
    assert 0 < found.low < found.value < found.high <= 1


def test_equal_scores_count_half() -> None:
    found = auroc(np.array([[0.5], [0.5], [0.5], [0.5]]), np.array([[1.0], [0.0], [1.0], [0.0]]))
    assert found is not None
    assert found.value == 0.5


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draw, held, truth = np.random.default_rng(5), 0, float(ndtr(1 / np.sqrt(2)))
    for _ in range(400):
        own = (draw.random(120) < 0.4).astype(float)
        found = auroc((draw.normal(size=120) + own)[:, None], own[:, None])
        assert found is not None
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_rows_that_are_all_in_order_prove_no_perfect_model() -> None:
    own = np.array([1.0] * 5 + [0.0] * 5)[:, None]
    found = auroc(own, own)
    assert found is not None
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.5 < found.low < 0.95
    many = np.repeat(own, 20, axis=0)
    more = auroc(many, many)
    assert more is not None
    assert found.low < more.low < 1.0


def test_one_row_of_a_class_proves_next_to_nothing() -> None:
    """Its place among a hundred others is known to a hundredth; that of the next row of the class is not."""
    scores, own = np.arange(101.0)[:, None], np.zeros((101, 1))
    own[70] = 1.0
    for found in (auroc(scores, own), auroc(-scores, 1.0 - own)):
        assert found is not None
        assert found.value == pytest.approx(0.7)
        assert found.low < 0.1
        assert found.high == 1.0


def test_pairs_that_are_all_in_the_wrong_order_prove_no_area_of_0() -> None:
    own = np.array([1.0] * 5 + [0.0] * 5)[:, None]
    right, wrong = auroc(own, own), auroc(-own, own)
    assert right is not None
    assert wrong is not None
    assert (wrong.value, wrong.low) == (0.0, 0.0)
    assert wrong.high == pytest.approx(1.0 - right.low)


def test_a_class_that_does_not_divide_the_rows_has_no_area() -> None:
    assert auroc(np.array([[0.2, 0.8]] * 3), np.array([[0.0, 1.0]] * 3)) is None


def test_as_a_metric_it_has_its_direction() -> None:
    found = area_under_curve(*_drawn(100, 3, seed=1))
    assert found is not None
    assert found.higher_is_better
    assert area_under_curve(np.array([[0.2, 0.8]] * 3), np.array([[0.0, 1.0]] * 3)) is None


def test_numbers_are_held_against_those_of_the_rows() -> None:
    found = absolute_error(["$1,200", "$10", "$7"], ["$1,100", "$30", "no price"])
    assert found is not None
    assert found.value == 60.0
    assert not found.higher_is_better
    assert absolute_error(["much", "$10"], ["$1", "$2"]) is None
    assert absolute_error(["$1"], ["none"]) is None


def test_scores_that_are_all_equal_prove_no_area_of_a_half() -> None:
    own = np.array([1.0] * 5 + [0.0] * 5)[:, None]
    found = auroc(np.full((10, 1), 0.5), own)
    assert found is not None
    assert found.value == 0.5
    assert found.low < 0.25
    assert found.high == pytest.approx(1 - found.low)
    many = auroc(np.full((400, 1), 0.5), np.repeat(own, 40, axis=0))
    assert many is not None
    assert 0.4 < many.low < many.high < 0.6


def test_the_interval_holds_the_truth_near_its_end_too() -> None:
    """Twelve rows of each side and an area of 0.96: without the logit scale it holds in 85 of 100."""
    draw, held, truth = np.random.default_rng(7), 0, 0.96
    shift = float(np.sqrt(2) * ndtri(truth))
    own = np.array([1.0] * 12 + [0.0] * 12)
    for _ in range(500):
        found = auroc((draw.normal(size=24) + shift * own)[:, None], own[:, None])
        assert found is not None
        held += found.low <= truth <= found.high
    assert held / 500 >= 0.92


def test_rows_of_one_group_count_together_in_the_interval_of_numbers() -> None:
    """Eight groups of ten equal rows, and one row without a number, know as much as eight rows."""
    outputs, references = [f"{at // 10 * 3}" for at in range(80)], ["1"] * 80
    clusters = [at // 10 for at in range(80)]
    by_row = absolute_error([*outputs, "5"], [*references, "none"])
    by_group = absolute_error([*outputs, "5"], [*references, "none"], clusters=[*clusters, 99])
    few = absolute_error(outputs[::10], references[::10])
    assert by_row is not None
    assert by_group is not None
    assert few is not None
    assert by_group.value == pytest.approx(by_row.value)
    assert by_group.high - by_group.low > 2 * (by_row.high - by_row.low)
    assert (by_group.low, by_group.high) == pytest.approx((few.low, few.high))


def test_rows_of_one_group_count_together_in_the_interval_of_an_area() -> None:
    probabilities, own = _drawn(40, 3, seed=3)
    copies, clusters = 9, [at // 9 for at in range(360)]
    many, many_own = np.repeat(probabilities, copies, axis=0), np.repeat(own, copies, axis=0)
    few, by_row, by_group = auroc(probabilities, own), auroc(many, many_own), auroc(many, many_own, clusters)
    assert few is not None
    assert by_row is not None
    assert by_group is not None
    assert by_group.value == pytest.approx(few.value)
    assert by_group.high - by_group.low > 2 * (by_row.high - by_row.low)
    assert (by_group.low, by_group.high) == pytest.approx((few.low, few.high), abs=0.02)
    sides = np.repeat([[1.0]] * 5 + [[0.0]] * 5, copies, axis=0)
    alone, grouped = auroc(sides, sides), auroc(sides, sides, [at // 9 for at in range(90)])
    assert alone is not None
    assert grouped is not None
    assert grouped.low < alone.low
