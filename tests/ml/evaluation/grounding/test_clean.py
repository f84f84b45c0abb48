"""One writing of signs, numbers and blanks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.evaluation.grounding.citation import blocks, clean, squash


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("§\u00a034\u20119\u20131", "§ 34-9-1"),
        ("§\u202f34 \t 9", "§ 34 9"),
        ("34-9-\n12", "34-9-12"),
        ("so-\ncalled", "so-\ncalled"),
        ("34\u200b-9\ufeff-1\u00ad", "34-9-1"),
        ("a \n\n\n\n b", "a\n\nb"),
        ("“a” ‘b’", "\"a\" 'b'"),
        ("", ""),
    ],
)
def test_signs_that_look_alike_become_one(text: str, expected: str) -> None:
    assert clean(text) == expected


@given(st.text(max_size=200))
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(st.lists(st.sampled_from(["word ", "\n\n", "x" * 9_000, "\n", "§ 5 "]), max_size=30))
def test_blocks_are_the_text_in_bounded_parts(parts: list[str]) -> None:
    text = "".join(parts)
    found = list(blocks(text))
    assert "".join(part for _, part in found) == text
    assert all(text[offset : offset + len(part)] == part and len(part) <= 20_000 for offset, part in found)


def test_letters_and_digits_alone_make_a_code() -> None:
    assert squash("O. C. G. A.") == squash("OCGA") == "ocga"
