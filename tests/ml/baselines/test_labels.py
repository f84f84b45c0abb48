"""Baselines for answers that repeat."""

from __future__ import annotations

import random

import numpy as np
import pytest

from luthier.ml.baselines import labels
from luthier.ml.baselines.labels import MAX_LABELS, commonest_answer, linear_classifier, popular_among_offered
from luthier.ml.baselines.rows import NotApplicable, TaskRow


def review(number: int, word: str) -> str:
    filler = random.Random(number).sample(["the", "soup", "waiter", "evening", "table", "music", "bread"], 4)
    return f"{' '.join(filler)} was {word}"


def reviews(num: int, start: int = 0) -> list[TaskRow]:
    """The class is a linear rule of the words."""
    words = [("splendid", "good"), ("delightful", "good"), ("dreadful", "bad"), ("awful", "bad")]
    return [TaskRow(review(n, words[n % 4][0]), words[n % 4][1]) for n in range(start, start + num)]


def test_the_commonest_answer_and_its_commonest_spelling() -> None:
    rows = [TaskRow("", answer) for answer in ("Bad", "great", "Great ", "great", "bad")]
    assert commonest_answer(rows, 3) == ["great"] * 3


def test_of_equally_common_answers_the_first_in_the_rows() -> None:
    rows = [TaskRow("", answer) for answer in ("b", "a", "a", "b")]
    assert commonest_answer(rows, 1) == ["b"]


def test_answers_that_never_repeat_have_no_commonest_one() -> None:
    with pytest.raises(NotApplicable, match="no answer occurs twice"):
        commonest_answer([TaskRow("", "a"), TaskRow("", "b")], 1)
    with pytest.raises(NotApplicable):
        commonest_answer([], 1)


def test_an_empty_answer_is_an_answer() -> None:
    assert commonest_answer([TaskRow("q", ""), TaskRow("r", ""), TaskRow("s", "x")], 2) == ["", ""]


def test_a_linear_rule_is_learned() -> None:
    train, held_out = reviews(120), reviews(60, start=1_000)
    found = linear_classifier(train, [row.prompt for row in held_out])
    assert found.outputs == [row.answer for row in held_out]
    assert found.outputs == linear_classifier(train, [row.prompt for row in held_out]).outputs, "the same every time"


def test_probabilities_follow_from_rows_that_were_not_fitted() -> None:
    """One in five training labels is wrong, so a classifier that is right as often is about as sure."""
    other = {"good": "bad", "bad": "good"}
    wrong = random.Random(1)
    noisy = [TaskRow(row.prompt, other[row.answer]) if wrong.random() < 0.2 else row for row in reviews(400)]
    held_out = reviews(200, start=1_000)
    found = linear_classifier(noisy, [row.prompt for row in held_out])
    assert found.classes == ("bad", "good")
    assert found.probabilities is not None
    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(200))
    # Probabilities never contradict the answer.
    likeliest = [found.classes[place] for place in found.probabilities.argmax(axis=1)]
    assert likeliest == found.outputs
    assert 0.65 < float(found.probabilities.max(axis=1).mean()) < 0.95
    # A rule that is never broken makes it sure, but not certain after a few rows.
    clean = linear_classifier(reviews(40), [row.prompt for row in held_out]).probabilities
    assert clean is not None
    assert 0.7 < float(clean.max(axis=1).mean()) < 0.999
    three = [TaskRow(f"{word} {number}", word) for number in range(30) for word in ("red", "green", "blue")]
    assert np.shape(linear_classifier(three, ["red 1", "blue"]).probabilities) == (2, 3)


def test_rows_that_are_sorted_by_label_are_tried_on_all_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_MAX_TRIED", 40)
    rows = sorted(reviews(120), key=lambda row: row.answer)
    assert len({row.answer for row in rows[:40]}) == 1
    found = linear_classifier(rows, [row.prompt for row in reviews(20, start=1_000)])
    assert found.probabilities is not None
    assert found.outputs == [row.answer for row in reviews(20, start=1_000)]


def test_labels_that_differ_in_case_or_space_are_one_class() -> None:
    rows = [
        row if number % 3 else TaskRow(row.prompt, f" {row.answer.upper()}") for number, row in enumerate(reviews(60))
    ]
    assert set(linear_classifier(rows, [row.prompt for row in rows]).outputs) == {"good", "bad"}


def test_a_class_with_one_row_does_no_harm() -> None:
    rows = [*reviews(40), TaskRow("the cheque never came", "neither")]
    assert linear_classifier(rows, ["bread was awful"]).outputs == ["bad"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([TaskRow("a", "x"), TaskRow("b", "x")], "the same answer"),
        ([], "no training rows"),
        ([TaskRow(f"word{n}", f"label {n}") for n in range(20)], "hardly repeat"),
        ([TaskRow(f"word{n}", f"label {n % 5_000}") for n in range(12_000)], f"5,000 .* at most {MAX_LABELS}"),
        ([TaskRow("?", "x"), TaskRow("!", "y"), TaskRow("?", "x"), TaskRow("!", "y")], "no words"),
    ],
)
def test_rows_without_classes_are_left_out_with_the_reason(rows: list[TaskRow], reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        linear_classifier(rows, ["a"])


def test_the_most_popular_of_those_that_the_prompt_offers() -> None:
    offers = [("tea, milk", "tea"), ("milk, bread", "milk"), ("tea, bread", "tea"), ("milk, tea", "tea")]
    rows = [TaskRow(f"Which of {offered}?", bought) for offered, bought in offers * 5]
    assert popular_among_offered(rows, ["Which of bread, milk?", "Which of milk, tea?", "Anything?"]) == [
        "milk",
        "tea",
        "tea",
    ]


def test_whether_prompts_offer_answers_is_decided_by_rows_of_the_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_LOOKED_AT", 10)
    offers = [("tea, milk", "tea"), ("milk, tea", "tea"), ("tea, milk", "milk")]
    rows = [TaskRow(f"Which of {offered}?", bought) for offered, bought in offers * 5]
    assert popular_among_offered(rows, ["Which of milk, tea?"]) == ["tea"]
    with pytest.raises(NotApplicable):
        popular_among_offered([*rows, *(TaskRow("Which?", "milk") for _ in range(15))], ["Which of milk, tea?"])


def test_prompts_that_offer_nothing_have_no_most_popular_answer() -> None:
    with pytest.raises(NotApplicable):
        popular_among_offered(reviews(40), ["x"])
