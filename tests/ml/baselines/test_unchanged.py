"""The text of the prompt as the answer."""

from __future__ import annotations

import random

import pytest

from luthier.ml.baselines.rows import NotApplicable, TaskRow
from luthier.ml.baselines.unchanged import unchanged_texts

TEXT = "the house near river was sold last year because its old roof let in too much rain every single winter"


def sentence(number: int) -> str:
    return " ".join(random.Random(number).sample(TEXT.split(), 12))


def corrected(number: int, *, before: str = "Correct this:\n", after: str = "\nAnswer:") -> TaskRow:
    text = sentence(number)
    return TaskRow(f"{before}{text}{after}", text.capitalize() + ".")


def test_the_text_is_the_prompt_without_what_all_prompts_share() -> None:
    rows = [corrected(n) for n in range(40)]
    assert unchanged_texts(rows, [corrected(n).prompt for n in (100, 101)]) == [sentence(100), sentence(101)]
    bare = [corrected(n, before="", after="") for n in range(40)]
    assert unchanged_texts(bare, [sentence(7), "another text"]) == [sentence(7), "another text"]


def test_a_few_prompts_of_another_form_change_nothing() -> None:
    rows = [corrected(n) for n in range(60)]
    rows[3], rows[30] = corrected(3, before="A: "), corrected(30, after="\nZ!")
    assert unchanged_texts(rows, [corrected(100).prompt]) == [sentence(100)]


def test_prompts_that_begin_alike_by_chance_lose_no_part_of_a_word() -> None:
    rows = [TaskRow(f"Fix: theory{n} of {sentence(n)}", f"theory{n} of {sentence(n)}!") for n in range(40)]
    assert unchanged_texts(rows, [f"Fix: theory7 of {sentence(7)}"]) == [f"theory7 of {sentence(7)}"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([corrected(n) for n in range(9)], "fewer than ten"),
        ([TaskRow(sentence(n), "good") for n in range(40)], "short"),
        ([TaskRow(sentence(n), f"SELECT a FROM t WHERE b = {n}") for n in range(40)], "no versions"),
        ([TaskRow("Tell a story.", f"{sentence(n)} and so on") for n in range(40)], "no versions"),
        ([TaskRow("", "") for _ in range(40)], "short"),
    ],
    ids=["few", "labels", "queries", "one prompt", "empty"],
)
def test_rows_of_another_kind_are_left_out(rows: list[TaskRow], reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        unchanged_texts(rows, ["x"])
