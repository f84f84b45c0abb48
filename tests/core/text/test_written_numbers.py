"""Numbers as answers and programs write them."""

from __future__ import annotations

import json

import pytest

from luthier.core.text.written_numbers import number_format, read_number, typed_number, write_number


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
