"""Cells of CSV files that a spreadsheet must not compute."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.text.spreadsheet import csv_line, text_cell, text_of_cell


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "'=1"])
def test_what_begins_like_a_formula_becomes_a_text(text: str) -> None:
    assert text_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "'", "a=b", "1-1", "'quoted'", " good", "gr\u00f6\u00dfer"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert text_cell(text) == text


@given(st.text(alphabet="'=+-@\ta1 ", max_size=6))
def test_a_cell_is_read_back_as_its_text(text: str) -> None:
    assert text_of_cell(text_cell(text)) == text


@given(st.lists(st.text(alphabet='ab,"\r\n=', max_size=6), min_size=1, max_size=3))
def test_a_line_is_one_row_with_the_same_cells(cells: list[str]) -> None:
    written = csv_line(cells)
    assert written.endswith("\n")
    assert list(csv.reader(io.StringIO(written, newline=""))) == [cells]


def test_a_carriage_return_begins_no_row() -> None:
    assert csv_line(["nice\r=1+1", 2, None]) == '"nice\r=1+1",2,\n'
