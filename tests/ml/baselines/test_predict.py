"""All baselines of a set of rows."""

from __future__ import annotations

import pytest
from tests.vacuous import nonempty

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.ports import SilentProgress
from luthier.ml.baselines import labels, nearest
from luthier.ml.baselines.predict import LINEAR, MAJORITY, NEAREST, BaselineSet, predict
from luthier.ml.baselines.rows import MAX_ROWS, same_label, task_rows


def example(number: int, prompt: str, answer: str | None) -> Example:
    turns = [Message(role="system", content="Sort it."), Message(role="user", content=prompt)]
    turns.append(Message(role="assistant", content=answer))
    return Example(id=f"rows.jsonl:{number}", conversation=Conversation(messages=tuple(turns)))


def labelled(num: int, start: int = 0) -> list[Example]:
    words = ("splendid", "dreadful")
    return [example(n, f"Dish {n} was {words[n % 2]}", ("good", "bad")[n % 2]) for n in range(start, start + num)]


def test_those_that_fit_answer_every_row_and_the_others_say_why() -> None:
    held_out = labelled(10, start=500)
    found = predict(labelled(60), held_out, progress=SilentProgress())
    names = [one.name for one in found.predictions]
    assert names == [MAJORITY, NEAREST, LINEAR]
    assert all(len(one.outputs) == 10 and one.seconds > 0 for one in nonempty(found.predictions))
    assert list(found.predictions[-1].outputs) == [row.reference for row in held_out]
    assert all(": " in reason for reason in nonempty(found.left_out))
    assert (found.num_rows, found.is_sample) == (60, False)


def test_rows_without_text_answers_have_no_baselines() -> None:
    text = [Example(id="a:1", text="Just text.")]
    assert predict(text, text, progress=SilentProgress()).predictions == ()
    assert predict([], labelled(2), progress=SilentProgress()).predictions == ()


def test_many_rows_are_sampled_by_content() -> None:
    many = [example(n, f"p {n}", "x") for n in range(MAX_ROWS + 50)]
    rows = task_rows(many)
    assert len(rows) == MAX_ROWS
    assert set(rows) == set(task_rows(many[::-1]))
    assert BaselineSet(num_rows=MAX_ROWS, is_sample=True).notes == (
        f"Baselines without a language model were fitted on a sample of {MAX_ROWS:,} training rows.",
    )
    assert BaselineSet(num_rows=60).notes == ()


def test_baselines_that_take_fewer_rows_of_long_prompts_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_CHARACTERS", 2_000)
    # Both labels among every second row.
    rows = [example(n, f"Dish {n} was {'splendid' if n // 2 % 2 else 'dreadful'}", f"{n // 2 % 2}") for n in range(80)]
    found = predict(rows, labelled(10), progress=SilentProgress())
    fitted = {one.name: one.num_rows for one in found.predictions}
    assert (fitted[NEAREST], fitted[LINEAR]) == (80, 40)
    assert found.notes == (
        "To take some seconds only, baselines were fitted on fewer of 80 rows: linear classifier on 40.",
    )


def test_forty_thousand_rows_are_sampled_and_long_ones_once_more_and_both_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nearest, "MAX_WORD_CHARACTERS", 200_000)
    monkeypatch.setattr(labels, "MAX_CHARACTERS", 100_000)
    found = predict(labelled(2_000) * 20, labelled(4), progress=SilentProgress())
    fitted = {one.name: one.num_rows for one in nonempty(found.predictions)}
    assert (found.num_rows, found.is_sample, fitted[MAJORITY]) == (MAX_ROWS, True, MAX_ROWS)
    # A prompt has about 35 characters: no baseline reads more of them than its bound.
    assert 0 < fitted[LINEAR] < fitted[NEAREST] < MAX_ROWS
    sampled, fewer = found.notes
    assert sampled == f"Baselines without a language model were fitted on a sample of {MAX_ROWS:,} training rows."
    assert f"{NEAREST} on {fitted[NEAREST]:,}" in fewer
    assert f"{LINEAR} on {fitted[LINEAR]:,}" in fewer
    assert found.seconds == pytest.approx(sum(one.seconds for one in found.predictions))


def test_half_a_surrogate_in_a_row_is_no_reason_to_fail() -> None:
    rows = [*labelled(30), example(99, "odd \ud800 text", "good")]
    assert predict(rows, rows, progress=SilentProgress()).predictions


def answered(train: list[Example], held_out: list[Example]) -> tuple[dict[str, tuple[str, ...]], str]:
    """What each baseline answers, and why others are left out."""
    found = predict(train, held_out, progress=SilentProgress())
    return {one.name: one.outputs for one in found.predictions}, "; ".join(found.left_out)


def test_one_class_only_is_answered_by_the_commonest_answer() -> None:
    found, left_out = answered([example(n, f"Dish {n}", "good") for n in range(30)], labelled(4, start=100))
    assert found[MAJORITY] == ("good",) * 4
    assert LINEAR not in found
    assert f"{LINEAR}: all training rows have the same answer" in left_out


def test_a_class_that_was_never_trained_is_answered_with_another_one() -> None:
    held_out = [*labelled(4, start=100), example(200, "Dish 200 was splendid", "never trained")]
    found, _ = answered(labelled(60), held_out)
    assert found[LINEAR] == ("good", "bad", "good", "bad", "good")
    assert {text for outputs in found.values() for text in outputs} == {"good", "bad"}


def test_empty_answers_are_answers() -> None:
    rows = [example(n, f"Dish {n} was {('splendid', 'nothing')[n % 2]}", ("good", "")[n % 2]) for n in range(60)]
    found, _ = answered(rows, [example(200, "Dish 200 was nothing", "")])
    assert found[LINEAR] == ("",)


def test_five_thousand_classes_leave_the_classifier_out_and_not_the_others() -> None:
    rows = [example(n, f"word{n % 5_000} {n}", f"label {n % 5_000}") for n in range(10_000)]
    found, left_out = answered(rows, [example(20_000, "word4321", "label 4321")])
    assert f"{LINEAR}: 5,000" in left_out
    assert found[NEAREST] == ("label 4321",)
    assert found[MAJORITY] == ("label 0",), "of equally common answers the first"


def test_labels_are_compared_without_case_and_spaces() -> None:
    assert same_label(" Very\n Good") == same_label("very good")
