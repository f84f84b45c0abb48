from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.rows.columns import columns_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_types_are_those_of_all_rows() -> None:
    rows: list[dict[str, Any]] = [
        {"a": "x", "b": 1, "c": None, "d": True, "e": [1, 2.5], "f": {"g": "y"}, "h": 1},
        {"a": None, "b": 2.5, "c": None, "d": False, "e": [], "f": {"g": None, "i": [{"j": 1}]}, "h": "one"},
    ]
    found = columns_of(rows)
    assert {name: column.type for name, column in found.items()} == {
        "a": "text",
        "b": "number",
        "c": "null",
        "d": "boolean",
        "e": "list",
        "f": "object",
        "h": "mixed",
    }
    assert found["a"].num_filled == 1
    assert {name: column.in_words() for name, column in found.items()} == {
        "a": "text",
        "b": "integer or number",
        "c": "null",
        "d": "boolean",
        "e": "list of numbers",
        "f": "object (g, i)",
        "h": "integer or text",
    }
    inner = found["f"].members["i"].items
    assert inner is not None
    assert inner.members["j"].type == "integer"


def test_what_is_nested_deep_or_has_very_many_names_is_cut_and_says_so() -> None:
    deep: Any = "x"
    for _ in range(50):
        deep = {"in": deep}
    column = columns_of([{"deep": deep, "wide": {str(n): n for n in range(600)}}])
    assert len(column["wide"].members) == 500
    assert column["wide"].is_cut
    place, depth = column["deep"], 0
    while place.members:
        place, depth = place.members["in"], depth + 1
    assert place.is_cut
    assert depth < 10


@given(st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=4), max_size=6))
def test_any_rows_can_be_described_and_their_order_changes_nothing_but_the_order(rows: list[dict[str, Any]]) -> None:
    forward, backward = columns_of(rows), columns_of(reversed(rows))
    assert set(forward) == {name for row in rows for name in row}
    for name, column in forward.items():
        assert column.in_words()
        assert column.kinds == backward[name].kinds
        assert column.num_filled == sum(row.get(name) is not None for row in rows)
        json.dumps(column.in_words())
