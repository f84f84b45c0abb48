"""Ids are sortable and safe in paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.ids import is_id, new_id


def test_a_new_id_is_one() -> None:
    assert is_id(new_id("run"), "run")
    assert not is_id(new_id("run"), "eval")
    assert new_id("run") != new_id("run")


@pytest.mark.parametrize(
    "text", ["", "run-", "run-../../etc", "run-20260101-000000-abcdef/..", "run-20260101-000000-ABCDEF", "RUN"]
)
def test_anything_else_is_not(text: str) -> None:
    assert not is_id(text, "run")


@given(st.text())
def test_no_text_with_a_separator_passes(text: str) -> None:
    if is_id(text, "run"):
        assert set(text) <= set("run-0123456789abcdef")
