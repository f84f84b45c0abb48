"""What is said of a system's confidence in its labels, and which share of cases it can answer alone."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.evaluation import Coverage
from luthier.core.evaluation_plan import Bar
from luthier.ml.evaluation.label_confidence import (
    MAX_TOKENS,
    arranged,
    confidence_details,
    confidence_plots,
    coverage_at,
    coverage_sentence,
    is_accuracy,
    label_confidence,
    trained_labels,
    why_left_out,
)
from luthier.ml.evaluation.metrics.classification import Labelling

LABELS = ("bad", "good", "never trained")


def made(num: int = 100) -> tuple[np.ndarray, list[str]]:
    """Probabilities of "bad" and "good" from 0.5 to 1, right as often as they say: [rows, 2], and own answers."""
    sure = np.linspace(0.5, 0.999, num)
    right = np.random.default_rng(2).random(num) < sure
    return np.stack([sure, 1 - sure], axis=1), ["Bad" if one else " good" for one in right]


def test_only_labels_of_training_rows_are_scored() -> None:
    assert trained_labels(LABELS, ["Good", "bad", "bad "]) == ("bad", "good")
    assert trained_labels(LABELS, []) == LABELS
    # General text among the training rows: none of the labels is there, so nothing is known of them.
    assert trained_labels(LABELS, ["Once upon a time"]) == LABELS


@pytest.mark.parametrize(
    ("labels", "num_rows", "num_tokens", "has_thoughts", "why"),
    [
        (("bad", "good"), 40, 4_000, False, ""),
        (("bad",), 40, 4_000, False, "the same label"),
        (("bad", "good"), 40, 4_000, True, "a thought"),
        (("bad", "good"), 19, 4_000, False, "19 held-out rows are too few: it takes 20"),
        (("bad", "good"), 4_000, MAX_TOKENS // 2, False, ""),
        (tuple(f"label {n}" for n in range(5_000)), 80, 8_000, False, "40,000,000 tokens"),
    ],
)
def test_what_is_left_out_is_said(
    labels: tuple[str, ...], num_rows: int, num_tokens: int, has_thoughts: bool, why: str
) -> None:
    found = why_left_out(labels, num_rows, num_tokens, has_thoughts=has_thoughts)
    assert why in found
    assert bool(found) == bool(why)


def test_classes_of_a_classifier_in_the_order_of_the_labels() -> None:
    found = arranged(np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]]), ("Good", "bad ", "other"), Labelling(LABELS))
    assert found[0] == pytest.approx([0.2 / 0.9, 0.7 / 0.9, 0], abs=1e-9)
    assert found[1] == pytest.approx([1 / 3] * 3)


def test_a_class_that_was_never_trained_is_always_wrong() -> None:
    given, references = made()
    known = label_confidence("tuned", given, Labelling(("bad", "good")), references, None)
    unknown = label_confidence("tuned", given, Labelling(("bad", "good")), ["never trained", *references[1:]], None)
    assert known.is_right[1:] == unknown.is_right[1:]
    assert not unknown.is_right[0]
    assert known.coverage is None
    empty = label_confidence("tuned", given, Labelling(("bad", "good")), ["", *references[1:]], None)
    assert not empty.is_right[0], "an empty answer is not a label either"


def test_a_calibrated_system_answers_a_share_alone() -> None:
    given, references = made(400)
    found = label_confidence(
        "tuned", given, Labelling(("bad", "good")), references, Bar(metric="label_accuracy", value=0.8)
    )
    coverage = found.coverage
    assert coverage is not None
    assert coverage.threshold is not None
    assert 0.3 < coverage.share_low < coverage.share < coverage.share_high < 1
    assert found.calibration_error.low == 0
    assert sum(part.num_rows for part in found.bins) == 400
    first, second = confidence_details(found)
    assert "calibration error" in first
    assert f"{coverage.num_answered} of 400 rows" in second
    reliability, curve = confidence_plots([found], {"tuned": "tuned"})
    assert [series.name for series in reliability.series] == ["as sure as right", "tuned"]
    assert curve.marks[0].name == "asked for: 0.8"
    assert curve.series[0].points[-1] == pytest.approx((1.0, np.mean(found.is_right)))


@pytest.mark.parametrize(
    ("bar", "is_one"),
    [
        (Bar(metric="label_accuracy", value=0.9), True),
        (Bar(metric="exact_match", value=0.9), True),
        (Bar(metric="macro_f1", value=0.9), False),
        (Bar(metric="label_accuracy", value=1.0), False),
        (Bar(metric="label_accuracy", value=0.0), False),
        (None, False),
    ],
)
def test_only_a_bar_of_accuracy_is_held_against_a_share(bar: Bar | None, is_one: bool) -> None:
    assert is_accuracy(bar) == is_one


def coverage(num_answered: int, accuracy: float | None, low: float | None) -> Coverage:
    return Coverage(
        asked=0.9, threshold=0.8, num_rows=100, num_answered=num_answered, share=num_answered / 100, share_low=0.0,
        share_high=1.0, accuracy=accuracy, low=low, high=None if low is None else 0.99,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (coverage(62, 0.98, 0.91), "It can answer 62% of cases alone at 90% accuracy; the rest goes to a person."),
        (coverage(100, 0.98, 0.91), "It can answer all cases alone at 90% accuracy."),
        (
            coverage(62, 0.95, 0.86),
            "It might answer 62% of cases alone; the rest goes to a person: 95% of those are right [86%, 99%], which "
            "does not show 90%.",
        ),
        (
            coverage(0, None, None),
            "It can answer no share of cases alone at 90% accuracy: it is wrong too often where it is sure.",
        ),
    ],
)
def test_the_share_in_words(found: Coverage, sentence: str) -> None:
    assert coverage_sentence(found) == sentence


def test_confidence_that_says_nothing_gives_no_share() -> None:
    given = np.full((40, 2), [0.9, 0.1])
    found = coverage_at(label_confidence("tuned", given, Labelling(("bad", "good")), ["bad", "good"] * 20, None), 0.9)
    assert (found.threshold, found.num_answered, found.is_shown) == (None, 0, False)
    assert (found.chosen_on, found.num_validation_rows) == ("held_out", 0)


def test_validation_rows_choose_the_threshold_and_held_out_rows_show_what_it_is_worth() -> None:
    (given, references), labelling = made(400), Labelling(("bad", "good"))
    # Only the surest of them are right, so that the threshold must come from here.
    other = (np.array([[0.99, 0.01]] * 30 + [[0.97, 0.03]] * 30), ["bad"] * 30 + ["good"] * 30)
    bar = Bar(metric="label_accuracy", value=0.9)
    found = label_confidence("tuned", given, labelling, references, bar, validation=other)
    coverage = found.coverage
    assert coverage is not None
    assert (coverage.chosen_on, coverage.num_validation_rows, coverage.threshold) == ("validation", 60, 0.99)
    answered = np.array(found.confidence) >= 0.99
    assert (coverage.num_answered, coverage.num_rows) == (int(answered.sum()), 400)
    assert coverage.accuracy == pytest.approx(np.array(found.is_right)[answered].mean())
    assert confidence_details(found)[1].endswith("by a threshold from 60 validation rows.")
    assert coverage_at(found, 0.9) == coverage, "what is priced later is what the verdict says"
    alone = label_confidence("tuned", given, labelling, references, bar)
    assert alone.coverage is not None
    assert alone.coverage.chosen_on == "held_out"
    assert alone.coverage.threshold != 0.99
    assert confidence_details(alone)[1].endswith("from other held-out rows (five folds).")


def test_validation_rows_that_reach_the_bar_nowhere_leave_nothing_to_answer_alone() -> None:
    given, references = made(400)
    other = (np.full((40, 2), [0.9, 0.1]), ["bad", "good"] * 20)
    bar = Bar(metric="label_accuracy", value=0.9)
    found = label_confidence("tuned", given, Labelling(("bad", "good")), references, bar, validation=other).coverage
    assert found is not None
    assert (found.threshold, found.num_answered, found.chosen_on) == (None, 0, "validation")


def test_rows_of_one_customer_count_together_where_a_threshold_is_judged() -> None:
    """Customers whose rows are all right or all wrong: forty rows of ten of them say what ten rows say."""
    customers = [number // 12 for number in range(120)]
    given = np.full((120, 2), [0.9, 0.1])
    references = ["good" if customer == 9 else "bad" for customer in customers]
    labelling, bar = Labelling(("bad", "good")), Bar(metric="label_accuracy", value=0.8)
    rows = label_confidence("tuned", given, labelling, references, bar)
    groups = label_confidence("tuned", given, labelling, references, bar, clusters=[f"c{one}" for one in customers])
    assert rows.coverage is not None
    assert groups.coverage is not None
    assert (rows.coverage.accuracy, rows.coverage.is_shown) == (0.9, True)
    assert (groups.coverage.accuracy, groups.coverage.is_shown) == (0.9, False)
    assert groups.groups == tuple(customers)
    assert groups.brier.high - groups.brier.low > 1.5 * (rows.brier.high - rows.brier.low)
    assert coverage_at(groups, 0.8) == groups.coverage, "what is priced later is what the verdict says"
    assert rows.groups == ()
