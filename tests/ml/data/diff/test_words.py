from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.diff.row_changes import changes, shortened, word_diff

WORDS = st.lists(st.sampled_from(["a", "b", "the", " ", "  ", "\n", ".", "ä", "日", ","]), max_size=30).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
ROWS = st.dictionaries(st.text("xyz", min_size=1, max_size=2), VALUES, max_size=3)


def test_only_the_words_that_changed_are_marked() -> None:
    found = word_diff("It is four, as everyone knows.", "It is five, as everyone knows now.")
    assert found == (
        ("=", "It is "),
        ("-", "four"),
        ("+", "five"),
        ("=", ", as everyone knows"),
        ("+", " now"),
        ("=", "."),
    )


def test_neighbouring_words_are_one_change() -> None:
    assert word_diff("one two three", "one 2 3") == (("=", "one "), ("-", "two three"), ("+", "2 3"))


@given(WORDS | st.text(max_size=30), WORDS | st.text(max_size=30))
def test_the_spans_spell_both_texts(old: str, new: str) -> None:
    spans = word_diff(old, new)
    assert "".join(text for sign, text in spans if sign != "+") == old
    assert "".join(text for sign, text in spans if sign != "-") == new
    assert all(text for _, text in spans)
    assert (not [sign for sign, _ in spans if sign != "="]) == (old == new)


def test_very_long_texts_are_replaced_as_a_whole_between_what_is_equal() -> None:
    old, new = "start " + "a b " * 200_000 + "end", "start " + "c d " * 200_000 + "end"
    spans = word_diff(old, new)
    assert [sign for sign, _ in spans] == ["=", "-", "+", "="]
    assert spans[0][1] == "start "
    assert len(shortened(spans, 40)[1][1]) < 400


def test_unchanged_text_far_from_a_change_is_cut() -> None:
    spans = word_diff("x " * 100 + "old" + " y" * 100, "x " * 100 + "new" + " y" * 100)
    first, _, _, last = shortened(spans, 10)
    assert first[1].startswith(" … ")
    assert last[1].endswith(" … ")
    assert shortened(word_diff("a b", "a c"), 10) == word_diff("a b", "a c")


def test_nested_places_are_named() -> None:
    old: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "n": 1, "gone": [], "same": {"a": [1, {}]}}
    new: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hello"}, {"role": "x"}],
        "n": 1.0,
        "same": {"a": [1, {}]},
    }
    found = {change.field: (change.old, change.new) for change in changes(old, new)}
    assert found == {
        "messages[0].content": ("hi", "hello"),
        "messages[1].role": (None, "x"),
        "n": ("1", "1.0"),
        "gone": ("[]", None),
    }
    assert changes({}, {}) == []


@given(ROWS, ROWS)
def test_rows_that_differ_have_a_place_that_differs(old: dict[str, Any], new: dict[str, Any]) -> None:
    same = json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)
    assert bool(changes(old, new)) == (not same)
    assert changes(old, old) == []
