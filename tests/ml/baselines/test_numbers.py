"""Ridge regression for answers that are numbers."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from luthier.core.text.written_numbers import NumberMarks, number_marks, read_number
from luthier.ml.baselines import numbers
from luthier.ml.baselines.numbers import ridge_regression, rows_for_regression
from luthier.ml.baselines.rows import NotApplicable, TaskRow


def flats(num: int, start: int = 0) -> list[TaskRow]:
    """Rent is 12.5 a square metre, and 200 more in the centre."""
    rows = []
    for number in range(start, start + num):
        size, centre = 30 + 7 * number % 71, number % 2 == 0
        where = "centre" if centre else "outskirts"
        rows.append(TaskRow(f"A flat of {size} m2 in the {where}.", f"€ {12.5 * size + 200 * centre:,.2f}"))
    return rows


def test_a_linear_rule_of_numbers_and_words_is_learned() -> None:
    train, held_out = flats(100), flats(20, start=500)
    found = ridge_regression(train, [row.prompt for row in held_out])
    for text, row in zip(found, held_out, strict=True):
        assert text.startswith("€ ")
        value, wanted = (float(one.removeprefix("€ ").replace(",", "")) for one in (text, row.answer))
        assert value == pytest.approx(wanted, rel=0.02)
    assert any("," in text for text in found)


def test_units_and_decimals_are_written_as_in_training() -> None:
    rows = [TaskRow(f"{n} eggs", f"{60 * n} g") for n in range(1, 21)]
    three, seven = ridge_regression(rows, ["3 eggs", "7 eggs"])
    assert three.endswith(" g")
    assert seven.endswith(" g")
    assert "." not in three + seven


def test_predictions_stay_inside_of_what_was_seen() -> None:
    rows = [TaskRow(f"{n} eggs", str(n)) for n in range(1, 21)]
    assert 1 <= float(ridge_regression(rows, ["4000 eggs"])[0]) <= 20


def test_rows_that_are_sorted_by_number_are_learned_over_their_whole_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_MOST_ROWS", 20)
    rows = [TaskRow(f"{n} eggs", str(n)) for n in range(1, 101)]
    assert float(ridge_regression(rows, ["90 eggs"])[0]) == pytest.approx(90, abs=5)
    kept = rows_for_regression(rows)
    assert len(kept) == 20
    assert rows_for_regression(kept) == kept
    assert {int(row.answer) // 25 for row in kept} == {0, 1, 2, 3}


def test_digits_that_no_float_holds_stop_neither_prompts_nor_answers() -> None:
    long = "9" * 400
    rows = [TaskRow(f"{n} eggs, key {long}", str(n)) for n in range(1, 41)]
    found = ridge_regression([*rows, TaskRow("all eggs", long)], ["3 eggs", f"eggs {long}"])
    assert all(1 <= float(one) <= 40 for one in found)
    assert len(found) == 2
    assert read_number(long) is None


@pytest.mark.parametrize(
    ("answers", "reason"),
    [(["yes"] * 20, "not numbers"), (["5"] * 20, "the same number"), (["1", "2"], "fewer than ten rows")],
)
def test_answers_of_another_kind_are_left_out(answers: list[str], reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        ridge_regression([TaskRow(f"q {n}", answer) for n, answer in enumerate(answers)], ["q"])


def test_numbers_with_decimal_commas_are_learned_as_those_with_points() -> None:
    signs = str.maketrans(",.", ".,")
    train, held_out = flats(100), flats(20, start=500)
    swapped = [TaskRow(row.prompt, row.answer.translate(signs)) for row in train]
    prompts = [row.prompt for row in held_out]
    found = ridge_regression(swapped, prompts)
    assert [text.translate(signs) for text in found] == ridge_regression(train, prompts)
    assert any("." in text for text in found)
    assert len(rows_for_regression(swapped)) == 100


def test_whole_numbers_with_points_between_thousands_are_no_decimals() -> None:
    rows = [TaskRow(f"{n} boxes", f"{50 * n:,}".replace(",", ".")) for n in range(1, 61)]
    (found,) = ridge_regression(rows, ["40 boxes"])
    assert float(found.replace(".", "")) == pytest.approx(2000, rel=0.02)


def test_decimals_in_prompts_are_read_as_they_are_written_there() -> None:
    """The answers are whole numbers and show nothing: a thousand times the number in the prompt."""
    rows = [TaskRow(f"{n / 4:g} ha".replace(".", ","), str(250 * n)) for n in range(1, 61)]
    (found,) = ridge_regression(rows, ["7,5 ha"])
    assert float(found) == pytest.approx(7500, rel=0.01)


@pytest.mark.parametrize(
    ("before", "is_one"),
    [
        ("", True), ("-", True), ("€ ", True), ("US$", True), ("EUR ", True), ("Rs. ", True), ("ca. ", True),
        ("~", True), ("x=", True), ("Sum: ", True),
        ("class ", False), ("Grade ", False), ("Stufe ", False), ("Q", False),
    ],
)  # fmt: skip
def test_a_word_before_digits_makes_them_the_name_of_a_class(before: str, is_one: bool) -> None:
    answers = [f"{before}{number % 4 + 1}" for number in range(20)]
    assert numbers.are_numbers(answers) is is_one


def test_marks_are_looked_for_once_in_the_answers_and_once_for_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def marks(answers: Iterable[str], *more: NumberMarks) -> NumberMarks:
        looked.append(len(more))
        return number_marks(answers, *more)

    monkeypatch.setattr(numbers, "number_marks", marks)
    rows = [TaskRow(f"{n} Eier", f"{n},5 kg") for n in range(1, 41)]
    (found,) = ridge_regression(rows, ["8 Eier"])
    assert found.endswith(" kg")
    assert "," in found
    assert looked == [0, 1]
