"""Words that differ, and that none is lost on the way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.charts.judged_rows import MAX_WORDS, Stretch, word_differences


def test_words_that_differ_are_marked() -> None:
    assert word_differences("the front is spruce", "the back is spruce") == [
        Stretch("", "the "),
        Stretch("del", "front"),
        Stretch("ins", "back"),
        Stretch("", " is spruce"),
    ]
    assert word_differences("same", "same") == [Stretch("", "same")]
    assert word_differences("", "") == []


def test_long_texts_are_not_compared() -> None:
    assert word_differences("a", "b " * MAX_WORDS) is None


@given(st.text("ab ,\n", max_size=60), st.text("ab ,\n", max_size=60))
def test_both_texts_can_be_read_off(other: str, text: str) -> None:
    found = word_differences(other, text)
    assert found is not None
    assert "".join(one.text for one in found if one.kind != "del") == text
    assert "".join(one.text for one in found if one.kind != "ins") == other
