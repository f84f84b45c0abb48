"""Exact similarity, checked against sets of strings."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.ml.data.dedup.shingles import jaccard, jaccards, shingles_of

WORDS = st.lists(st.sampled_from("abcde"), max_size=12)


def by_sets(a: list[str], b: list[str]) -> float:
    def shingles(words: list[str]) -> set[tuple[str, ...]]:
        if len(words) < 3:
            return {tuple(words)} if words else set()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right) if left | right else 0.0


@given(WORDS, WORDS)
def test_it_is_the_share_of_common_shingles_and_symmetric(a: list[str], b: list[str]) -> None:
    assert jaccard(" ".join(a), " ".join(b)) == jaccard(" ".join(b), " ".join(a)) == by_sets(a, b)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a b c d", "A, b (c) D!", 1.0),
        ("a b c d", "a b c d e", 2 / 3),
        ("a b", "a b", 1.0),
        ("a b", "b a", 0.0),
        ("a", "a b c", 0.0),
        ("", "", 0.0),
        ("...", "a", 0.0),
        ("a a a a a", "a a a", 1.0),
    ],
)
def test_short_and_odd_texts(a: str, b: str, expected: float) -> None:
    assert jaccard(a, b) == expected


def test_many_pairs_and_a_huge_one_at_once() -> None:
    huge = " ".join(str(number) for number in range(300_000))
    texts = shingles_of(pl.Series([huge, huge + " end", "a b c d", "a b c d e"]))
    left, right = np.array([0, 2] * 5_000), np.array([1, 3] * 5_000)
    few = slice(0, 4)
    assert jaccards(texts, left[few], texts, right[few]) == pytest.approx([299_998 / 299_999, 2 / 3] * 2, abs=0)
    assert set(jaccards(texts, left[1::2], texts, right[1::2]).tolist()) == {2 / 3}


def test_sets_are_sorted_unique_and_equal_sets_have_equal_fingerprints() -> None:
    texts = pl.Series(["x y z x y z x y", "y z x y z x y z x", "", "one two three four", None])
    made = shingles_of(texts)
    assert made.sizes.tolist() == [3, 3, 0, 2, 0]
    for start, end in nonempty(zip(made.offsets[:-1], made.offsets[1:], strict=True)):
        assert (np.diff(made.hashes[start:end].astype(np.int64)) > 0).all()
    first, second, empty, fourth, null = made.fingerprints().tolist()
    assert first == second
    assert empty == null
    assert len({first, empty, fourth}) == 3
