"""Numbers as answers and programs write them."""

from __future__ import annotations

import json

import pytest

from luthier.core.text.written_numbers import (
    POINT,
    NumberMarks,
    marks_in_texts,
    marks_note,
    marks_of,
    number_format,
    number_marks,
    numbers_in,
    read_number,
    typed_number,
    typed_whole,
    write_number,
)


@pytest.mark.parametrize("value", [1e-05, 2.5e-05, -3e-07, 0.0001, 0.25, 12.0, 1e16, 1.5e22, 5e-324])
def test_a_float_is_read_as_json_writes_it_and_written_so_that_it_is_read_again(value: float) -> None:
    found = read_number(json.dumps(value))
    assert found is not None
    assert found.value == value
    again = read_number(write_number(value, number_format([found])))
    assert again is not None
    assert again.value == value


@pytest.mark.parametrize(
    ("text", "decimals"), [("1e-05", 5), ("2.5e-05", 6), ("2.5E2", 0), ("1e+16", 0), ("0.25", 2), ("$1,234.50", 2)]
)
def test_an_exponent_moves_the_point(text: str, decimals: int) -> None:
    found = read_number(text)
    assert found is not None
    assert found.decimals == decimals


@pytest.mark.parametrize("text", ["1e400", "1e-99999", "e", "1e5e5", "about 7 or 8", "1 to 2"])
def test_what_is_no_number_or_no_float_is_none(text: str) -> None:
    assert read_number(text) is None


def test_a_unit_that_begins_with_e_is_no_exponent() -> None:
    found = read_number("5 euros")
    assert found is not None
    assert (found.value, found.after) == (5.0, " euros")


@pytest.mark.parametrize(
    ("text", "value", "before", "decimals"),
    [
        (".5", 0.5, "", 1),
        ("$.50", 0.5, "$", 2),
        ("-.25", -0.25, "", 2),
        (".5e-3", 0.0005, "", 4),
        (" .75 kg ", 0.75, "", 2),
        ("x=.5", 0.5, "x=", 1),
        ("No.5", 5.0, "No.", 0),
        ("Nr. 12", 12.0, "Nr. ", 0),
    ],
)
def test_a_point_before_digits_is_that_of_the_number(text: str, value: float, before: str, decimals: int) -> None:
    found = read_number(text)
    assert found is not None
    assert (found.value, found.before, found.decimals) == (value, before, decimals)


@pytest.mark.parametrize("text", ["0,125", "3,5", ",5", "-0,250 kg"])
def test_a_decimal_comma_is_not_read_as_thousands(text: str) -> None:
    assert read_number(text) is None
    assert read_number("1,250 kg") == (("", 1250.0, 0, " kg", True))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("400", 400.0),
        (" 2.5 ", 2.5),
        ("2,5", 2.5),
        ("0,125", 0.125),
        ("1,000", 1000.0),
        ("-12,345,678.5", -12345678.5),
        ("1.000,50", 1000.5),
        ("1.000.000", 1000000.0),
        ("1.125", 1.125),
        ("12,5", 12.5),
        ("1234,567", 1234.567),
        ("1e-05", 1e-05),
    ],
)
def test_a_typed_number_has_the_separators_of_its_country(text: str, value: float) -> None:
    assert typed_number(text) == value


@pytest.mark.parametrize("text", ["", "many", "1,0,0", "1.000,000,5", "1 000", "1,00.0"])
def test_what_is_typed_and_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        typed_number(text)


def test_a_number_behind_an_ellipsis_is_left_open() -> None:
    assert read_number("...5") is None


COMMA = NumberMarks(",", ".")
MARKS = [
    (["12,50 €", "1.000,00 €", "9,99 €"], COMMA),
    (["$12.50", "$1,000.00"], POINT),
    (["0,125 kg", "1,250 kg"], COMMA),
    (["0.125", "12.500"], POINT),
    (["1.250.000", "12.500", "900"], COMMA),
    (["1,250,000", "12,500"], POINT),
    # Whole numbers: three decimals would be there in every row, or without a 0 at their end.
    (["950", "1.200", "12.500", "480"], COMMA),
    (["950", "1.225", "12.375"], POINT),
    (["3", "1.200"], POINT),
    (["1500", "950", "1.200"], POINT),
    (["1.000", "12.500"], POINT),
    (["1.250", "2.500", "1e-05"], POINT),
    # One slip is no convention, and neither is a draw.
    ([*["1,250"] * 40, "3,5"], POINT),
    (["3,5", "3.5"], POINT),
    (["3,5", "4,5", "3.5"], COMMA),
    (["1 234,50", "999,00", "12 000,00"], NumberMarks(",", " ")),
    (["1'234.50", "999.00"], NumberMarks(".", "'")),
    (["1\u202f234,5", "12,5"], NumberMarks(",", "\u202f")),
    (["01.02.2024", "1.2.3", "yes", "", "1,2,3", "x" * 10_000], POINT),
    ([], POINT),
]


@pytest.mark.parametrize(("answers", "marks"), MARKS, ids=lambda one: str(one)[:40])
def test_rows_show_together_which_mark_is_that_of_decimals(answers: list[str], marks: NumberMarks) -> None:
    assert number_marks(answers) == marks
    assert number_marks(reversed(answers)) == marks


@pytest.mark.parametrize(
    ("text", "marks", "value", "decimals", "is_grouped"),
    [
        ("12.500", COMMA, 12500.0, 0, True),
        ("12.500", POINT, 12.5, 3, False),
        ("1.234,50 €", COMMA, 1234.5, 2, True),
        ("0,125", COMMA, 0.125, 3, False),
        (",5", COMMA, 0.5, 1, False),
        ("-1.000.000", COMMA, -1_000_000.0, 0, True),
        ("\u22123,5 kg", COMMA, -3.5, 1, False),
        ("1 234,5", NumberMarks(",", " "), 1234.5, 1, True),
        ("1\u00a0234,5", NumberMarks(",", " "), 1234.5, 1, True),
        ("12.000", NumberMarks(",", " "), 12000.0, 0, True),
        ("1\u2019234.5", NumberMarks(".", "'"), 1234.5, 1, True),
    ],
)
def test_a_number_is_read_by_the_marks_of_its_rows(
    text: str, marks: NumberMarks, value: float, decimals: int, is_grouped: bool
) -> None:
    found = read_number(text, marks)
    assert found is not None
    assert (found.value, found.decimals, found.has_commas) == (value, decimals, is_grouped)


@pytest.mark.parametrize(
    ("text", "marks"), [("3.5", COMMA), ("1.2345", COMMA), ("1 234", POINT), ("1.23.456", COMMA), ("1 23,5", COMMA)]
)
def test_what_these_marks_cannot_mean_is_no_number(text: str, marks: NumberMarks) -> None:
    assert read_number(text, marks) is None


@pytest.mark.parametrize(
    "answers",
    [["1.234,50 €", "9,99 €"], ["$1,234.50", "$9.99"], ["950", "12.500"], ["1 234,5", "2,0"], ["1'234.50", "9.99"]],
)
def test_a_number_is_written_as_its_rows_are_and_read_again(answers: list[str]) -> None:
    marks = number_marks(answers)
    read = [one for answer in answers if (one := read_number(answer, marks)) is not None]
    form = number_format(read, marks)
    assert len(read) == len(answers)
    assert write_number(read[0].value, form) == answers[0] or read[0].decimals != form.decimals
    assert marks_of(form) == marks
    again = read_number(write_number(1_234_567.0, form), marks_of(form))
    assert again is not None
    assert again.value == 1_234_567.0


def test_numbers_within_a_text_are_read_by_its_marks() -> None:
    text = "Wohnung 54,5 m2, 12.500 Einwohner, Zimmer 3."
    assert numbers_in(text, COMMA) == [54.5, 2.0, 12500.0, 3.0]
    assert marks_in_texts([text]) == COMMA
    assert numbers_in("54.5 m, 12,500 and 1,2345", POINT) == [54.5, 12500.0, 1.0, 2345.0]
    assert marks_in_texts(["54.5 m", "no number"]) == POINT


def test_how_numbers_are_read_is_said_where_it_could_be_otherwise() -> None:
    comma = ["9,99", "12.500", "1,50"]
    note = marks_note(comma, number_marks(comma))
    assert "decimal comma" in note
    assert "'12.500' is 12500" in note
    assert "'9,99' is 9.99" in marks_note(["9,99", "1,50"], COMMA)
    unclear = ["1.000", "12.500"]
    note = marks_note(unclear, number_marks(unclear))
    assert "decimal point" in note
    assert "'1.000' is 1," in note
    assert marks_note(["12.5", "1.000"], POINT) == marks_note(["1,000", "7"], POINT) == marks_note([], POINT) == ""


@pytest.mark.parametrize(
    ("text", "mark", "value"),
    [
        ("1,000", ".", 1000.0), ("1,000", ",", 1.0), ("1.000", ",", 1000.0), ("1.000", ".", 1.0),
        ("1.000,5", ",", 1000.5), ("1.000,5", ".", 1000.5), ("1,000.5", ",", 1000.5), ("12.345.678", ",", 12345678.0),
        ("12,345,678", ",", 12345678.0), ("2,5", ",", 2.5), ("2.5", ",", 2.5), ("0.125", ",", 0.125),
        ("0,125", ",", 0.125), ("-1.000", ",", -1000.0),
    ],
)  # fmt: skip
def test_a_typed_number_is_read_in_the_language_of_its_page(text: str, mark: str, value: float) -> None:
    assert typed_number(text, mark) == value


@pytest.mark.parametrize(
    ("text", "mark", "value"),
    [
        ("1000", ".", 1000),
        (" 1,000 ", ".", 1000),
        ("1.000", ",", 1000),
        ("1.000.000", ".", 10**6),
        ("1,000,000", ",", 10**6),
    ],
)
def test_a_typed_whole_number_may_have_separators_of_thousands(text: str, mark: str, value: int) -> None:
    assert typed_whole(text, mark) == value


@pytest.mark.parametrize(
    ("text", "mark"),
    [("1.000", "."), ("1,000", ","), ("2,5", "."), ("2.5", "."), ("1,00", "."), ("0,125", "."), ("1,000.5", "."),
     ("-1", "."), ("", "."), ("²", "."), ("1e3", "."), ("9" * 41, ".")],
)  # fmt: skip
def test_what_is_no_whole_number_or_could_be_two_is_refused(text: str, mark: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        typed_whole(text, mark)
