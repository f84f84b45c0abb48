"""Cells of CSV files that a spreadsheet must not compute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.text.spreadsheet import text_cell, text_of_cell


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "'=1"])
def test_what_begins_like_a_formula_becomes_a_text(text: str) -> None:
    assert text_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "'", "a=b", "1-1", "'quoted'", " good", "gr\u00f6\u00dfer"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert text_cell(text) == text


@given(st.text(alphabet="'=+-@\ta1 ", max_size=6))
def test_a_cell_is_read_back_as_its_text(text: str) -> None:
    assert text_of_cell(text_cell(text)) == text
