"""A number with its noun."""

from __future__ import annotations

import pytest

from luthier.core.text.counted import counted


@pytest.mark.parametrize(
    ("num", "noun", "plural", "text"),
    [
        (1, "row", "", "1 row"),
        (0, "row", "", "0 rows"),
        (1200, "row", "", "1,200 rows"),
        (1, "query", "queries", "1 query"),
        (2, "row is", "rows are", "2 rows are"),
    ],
)
def test_one_thing_is_singular(num: int, noun: str, plural: str, text: str) -> None:
    assert counted(num, noun, plural) == text
