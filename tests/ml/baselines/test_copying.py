"""Rules that copy answers from their prompts."""

from __future__ import annotations

import json

import pytest

from luthier.ml.baselines import copying
from luthier.ml.baselines.copying import copied_answers, rows_for_rules
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


VENDORS = ("Acme Ltd", "Bolt & Co", "Cedar Works", "Dune Press")


def invoice(number: int, *, indent: int | None = None) -> TaskRow:
    total, currency = f"{number * 7}.{number % 10}0", ("EUR", "USD")[number % 2]
    vendor = f"{VENDORS[number % 4]} {number}"
    sign = "in euros" if currency == "EUR" else "in dollars"
    prompt = f"INVOICE no. {number * 37}\nFrom: {vendor}\nAmount due: {total} {sign}\nThank you."
    fields = {"number": str(number * 37), "from": {"vendor": vendor}, "currency": currency, "paid": False}
    # A number keeps its last 0, which json.dumps would lose.
    text = json.dumps(fields | {"total": "TOTAL"}, indent=indent).replace('"TOTAL"', total)
    return TaskRow(prompt, text)


@pytest.mark.parametrize("indent", [None, 2])
def test_json_answers_are_copied_field_by_field_and_written_as_the_rows_write_them(indent: int | None) -> None:
    train = [invoice(n, indent=indent) for n in range(1, 60)]
    held_out = [invoice(n, indent=indent) for n in range(100, 120)]
    assert copied_answers(train, [row.prompt for row in held_out]) == [row.answer for row in held_out]
    assert len(rows_for_rules(train)) == 59


def test_a_field_that_no_rule_copies_does_not_spoil_the_others() -> None:
    rows = [TaskRow(f"Order {n * 41} of {n}", f'{{"order": {n * 41}, "note": "secret {n}"}}') for n in range(1, 40)]
    (found,) = copied_answers(rows, ["Order 9001 of 7"])
    assert found == '{"order": 9001, "note": "secret 1"}'


def test_copied_numbers_are_valid_json() -> None:
    rows = [TaskRow(f"Sum {n * 41} EUR", f'{{"sum": {n * 41}}}') for n in range(1, 40)]
    assert copied_answers(rows, ["Sum 1,234.50 EUR", "Sum unknown EUR"]) == ['{"sum": 1234.5}', '{"sum": null}']


def test_copied_numbers_are_read_with_the_decimal_mark_of_the_prompts() -> None:
    """A comma in the prices of the prompts shows that a point in their numbers separates thousands."""
    rows = [TaskRow(f"Menge {n * 41} Stück zu {n},50 EUR", f'{{"count": {n * 41}}}') for n in range(1, 24)]
    prompts = ["Menge 1.234 Stück zu 3,50 EUR", "Menge 12,5 Stück zu 3,50 EUR", "Menge 12.5 Stück zu 3,50 EUR"]
    assert copied_answers(rows, prompts) == ['{"count": 1234}', '{"count": 12.5}', '{"count": 12.5}']
    by_point = [TaskRow(row.prompt.replace(",", "."), row.answer) for row in rows]
    assert copied_answers(by_point, ["Menge 1.234 Stück zu 3.50 EUR"]) == ['{"count": 1.234}']


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([f'{{"a": "x{n}"}}' for n in range(30)], "no field of the JSON answers"),
        ([f'{{"k{n}": "x"}}' for n in range(30)], "different fields"),
        (["{}"] * 30, "fewer than half"),
        (["[1, 2]"] * 30, "fewer than half"),
        (["{" * 5_000] * 30, "fewer than half"),
    ],
)
def test_json_that_is_not_copied_is_left_out(answers: list[str], reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        copied_answers([TaskRow(f"question {n}", answer) for n, answer in enumerate(answers)], ["question"])
