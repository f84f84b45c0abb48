"""Rules that copy answers from their prompts."""

from __future__ import annotations

import pytest

from luthier.ml.baselines import copying
from luthier.ml.baselines.copying import copied_answers
from luthier.ml.baselines.rows import NotApplicable, TaskRow


def order(number: int) -> TaskRow:
    name = f"{('Ada', 'Grace', 'Alan', 'Edsger', 'Barbara')[number % 5]} L{number}"
    return TaskRow(f"Dear shop,\nmy order number is {number * 37}. Yours, {name}\n", str(number * 37))


def test_what_follows_certain_words_is_copied() -> None:
    train, held_out = [order(n) for n in range(1, 40)], [order(n) for n in range(100, 120)]
    assert copied_answers(train, [row.prompt for row in held_out]) == [row.answer for row in held_out]


def test_answers_of_several_words_up_to_what_comes_behind() -> None:
    cities = ["Rome", "New York", "Rio de Janeiro", "The Hague", "Paris", "Los Angeles", "Bonn", "San Jose"]
    rows = [TaskRow(f"Ship {n} boxes to {cities[n % 8]} {n}, please", f"{cities[n % 8]} {n}") for n in range(40)]
    assert copied_answers(rows, ["Ship 3 boxes to Santiago de Compostela, please"]) == ["Santiago de Compostela"]


def test_rows_of_one_form_behind_those_of_another_are_learned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_MAX_ROWS", 20)
    late = [TaskRow(f"Invoice {n * 41} is not paid", str(n * 41)) for n in range(1, 40)]
    found = copied_answers([*[order(n) for n in range(1, 40)], *late], ["Invoice 9001 is not paid", order(100).prompt])
    assert found == ["9001", order(100).answer]


def test_a_prompt_that_no_rule_fits_gets_nothing() -> None:
    assert copied_answers([order(n) for n in range(1, 40)], ["Hello"]) == [""]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([TaskRow(f"q {n}", f"answer {n}") for n in range(20)], "fewer than half"),
        ([TaskRow(f"Is it red or blue, number {n}?", "red") for n in range(20)], "repeat"),
        ([], "fewer than half"),
    ],
)
def test_rows_of_another_kind_are_left_out(rows: list[TaskRow], reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        copied_answers(rows, ["x"])
