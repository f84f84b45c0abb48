"""Findings name their rows by line, and show a few of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.audit.base import EXCERPT_CHARACTERS, AuditRequest, about_file, about_rows, excerpt, rows


@pytest.mark.parametrize("kind", [list, np.array])
def test_lines_are_sorted_and_examples_are_as_given(
    audited: Callable[..., AuditRequest], kind: Callable[[list[int]], list[int]]
) -> None:
    table = audited("{broken", *({"text": f"text {at}"} for at in range(9))).table
    found = about_rows(
        table, "x", "warning", kind([8, 0, 3, 4, 5, 6]), message="m", fix="f", notes={8: "odd"}, excerpts={0: "shown"}
    )
    assert (found.count, found.fraction) == (6, 0.6)
    assert found.lines == (2, 5, 6, 7, 8, 10)
    assert [example.row for example in found.examples] == [f"rows.jsonl:{line}" for line in (10, 2, 5, 6, 7)]
    assert [example.excerpt for example in found.examples[:2]] == ["text 8", "shown"]
    assert [example.note for example in found.examples[:2]] == ["odd", ""]


def test_no_rows_and_the_whole_file(audited: Callable[..., AuditRequest]) -> None:
    found = about_rows(audited({"text": "a"}).table, "x", "info", [], message="m", fix="f")
    assert (found.count, found.fraction, found.lines, found.examples) == (0, 0.0, (), ())
    found = about_file("x", "info", message="m", fix="f", details={"a": 1})
    assert (found.count, found.details) == (0, {"a": 1})


def test_lines_stay_out_of_the_document(audited: Callable[..., AuditRequest]) -> None:
    found = about_rows(audited({"text": "a"}).table, "x", "info", [0], message="m", fix="f")
    assert "lines" not in found.model_dump()
    assert "lines" not in repr(found)


@given(st.text(max_size=600), st.integers(0, 700))
def test_an_excerpt_shows_its_place_and_is_its_own_excerpt(text: str, around: int) -> None:
    shown = excerpt(text, around)
    assert len(shown) <= EXCERPT_CHARACTERS
    assert excerpt(shown) == shown
    assert around >= len(text) or text[around] in shown
    assert shown.removeprefix("…").removesuffix("…") in text or shown == text


def test_rows_are_counted_in_words() -> None:
    assert [rows(num) for num in (0, 1, 1204)] == ["0 rows", "1 row", "1,204 rows"]
