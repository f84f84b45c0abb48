"""Values in reports: one line, short, printable."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.files.bad_field import ABSENT, MAX_SHOWN_CHARACTERS, BadFieldError, require_text, shorten

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=200) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=10,
)


@given(_values)
def test_any_value_is_shown_short_on_one_line(value: Any) -> None:
    shown = shorten(value)
    assert len(shown) <= MAX_SHOWN_CHARACTERS
    assert "\n" not in shown
    shown.encode()


def test_short_values_are_whole_and_absent_ones_are_nothing() -> None:
    assert shorten("été") == '"été"'
    assert shorten({"a": [1, None]}) == '{"a": [1, null]}'
    assert shorten("x" * 100).endswith("…")
    assert shorten(ABSENT) == ""


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "is null where text is expected"),
        (True, "is a boolean where text is expected"),
        (1.5, "is a number where text is expected"),
        ([], "is a list where text is expected"),
        ({}, "is an object where text is expected"),
        (b"x", "is raw bytes where text is expected"),
        ("a\udc80", "contains half of a surrogate pair (\\udc80), which is not a character"),
    ],
)
def test_what_is_no_text_is_named(value: Any, reason: str) -> None:
    with pytest.raises(BadFieldError) as caught:
        require_text({"text": value}, "text")
    assert caught.value.reason == reason
