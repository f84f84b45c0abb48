"""Which answers are labels, and confusion tables of many labels."""

from __future__ import annotations

import pytest

from luthier.core.results.suite import Confusion
from luthier.ml.evaluation.metrics.classification import (
    LabelAccuracy,
    Labelling,
    MacroF1,
    answer_labels,
    confusion,
    joined_labels,
)
from luthier.ml.evaluation.metrics.protocol import Observations

BALANCED = ["good", "bad"] * 10
FREE = [f"The answer to question {n} is a sentence of its own." for n in range(30)]


@pytest.mark.parametrize(
    ("references", "training", "labels"),
    [
        (BALANCED, [], ("bad", "good")),
        (["Good", " good ", "BAD", "bad\n"] * 5, [], ("BAD", "Good")),
        (["1", "2", "3", "4", "5"] * 5, [], ("1", "2", "3", "4", "5")),
        ([*BALANCED, ""], [], ("bad", "good")),
        # A label that was never trained, one that is never judged, and too few held-out rows by themselves.
        (["good", "bad", "never trained"], [*BALANCED, *["rare"] * 5], ("bad", "good", "never trained", "rare")),
        # General rows among the training rows: the held-out rows decide.
        (BALANCED, FREE, ("bad", "good")),
        (FREE, BALANCED, ()),
        (["good"] * 40, [], ()),
        ([""] * 40, [], ()),
        (["good", "bad"] * 4, [], ()),
        ([f"class {n}" for n in range(5_000)] * 5, [], ()),
        ([f"class {n}" for n in range(10)] * 3, [], ()),
        (["good\nand more", "bad"] * 20, [], ()),
        (["x" * 61, "bad"] * 20, [], ()),
        ([], [], ()),
    ],
)
def test_answers_are_labels_where_few_short_ones_repeat(
    references: list[str], training: list[str], labels: tuple[str, ...]
) -> None:
    assert answer_labels(references, training) == labels


def test_a_constant_answer_has_high_accuracy_and_a_low_macro_f1() -> None:
    references = ["good"] * 18 + ["bad"] * 2
    metric = MacroF1(Labelling(answer_labels(references)))
    figure = metric.aggregate(metric.statistics(Observations(outputs=["good"] * 20, references=references)).sum(axis=0))
    # F1 of "good" is 2 * 18 / (18 + 20), that of "bad" is 0.
    assert float(figure) == pytest.approx((36 / 38) / 2)


def test_labels_beyond_the_commonest_are_one() -> None:
    names = [f"label {n:02}" for n in range(15)]
    # Of label n there are n + 1 rows; each second answer is the next label, and one is none.
    references = [name for n, name in enumerate(names) for _ in range(n + 1)]
    outputs = [ref if place % 2 else names[(names.index(ref) + 1) % 15] for place, ref in enumerate(references)]
    outputs[-1] = "a sonata"
    whole = confusion(Labelling(tuple(names)), Observations(outputs=outputs, references=references))
    found = joined_labels(whole, 12)
    assert found.labels == (*names[3:], "other")
    assert [sum(row) for row in found.counts] == [*range(4, 16), 1 + 2 + 3]
    assert sum(map(sum, found.counts)) == len(references)
    assert sum(row[-1] for row in found.counts) == 1, "the last column is what is none of the labels"
    assert [row[:3] for row in found.counts[:3]] == [row[3:6] for row in whole.counts[3:6]]
    assert joined_labels(whole, 15) is whole


def test_a_label_called_other_keeps_its_name() -> None:
    labels = ("Other", "rest", "seldom")
    whole = Confusion(labels=labels, counts=((3, 0, 0, 0), (0, 2, 0, 0), (0, 0, 1, 0)))
    assert joined_labels(whole, 2).labels == ("Other", "rest", "all other labels")


@pytest.mark.parametrize(
    ("output", "reference", "is_right"),
    [
        ("Positive.", "positive", True),
        ("positive", "Positive.", True),
        (" POSITIVE \n", "positive", True),
        ("positive .", "positive", True),
        ("...", "...", True),
        (".", ".", True),
        (".", "", False),
        ("positive!", "positive", False),
        ("not positive.", "positive", False),
        ("", "", False),
    ],
)
def test_a_label_is_the_same_with_a_full_stop_at_its_end(output: str, reference: str, is_right: bool) -> None:
    observed = Observations(outputs=[output], references=[reference])
    assert LabelAccuracy().statistics(observed).tolist() == [[float(is_right), 1.0]]


def test_a_full_stop_makes_no_label_of_its_own() -> None:
    labels = answer_labels([*["good", "bad"] * 10, *["Good.", "bad."] * 5])
    assert labels == ("bad", "good")
    found = confusion(
        Labelling(labels), Observations(outputs=["Good.", "bad", "fine."], references=["good", "bad.", "bad"])
    )
    assert found.counts == ((1, 0, 1), (0, 1, 0))
