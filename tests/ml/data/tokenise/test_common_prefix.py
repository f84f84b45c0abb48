"""The beginning that nearly all prompts share."""

from __future__ import annotations

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.files.row_frames import RowFrames
from luthier.ml.data.tokenise.shared_prefix import common_prefix, shared_beginning

SYSTEM = "You are a helpful assistant. Answer briefly.\n"


def test_it_is_found_though_a_few_rows_lack_it() -> None:
    texts = pl.Series([f"{SYSTEM}{word} is what?" for word in "abcdefghijklmnopqrstuvwxyz" * 10] + ["other"] * 20)
    assert common_prefix(texts) == SYSTEM


def test_it_ends_at_a_word() -> None:
    texts = pl.Series([f"What is the capital of country{number}?" for number in range(100)])
    assert common_prefix(texts) == "What is the capital of "


def test_texts_that_are_all_the_same_are_all_prefix() -> None:
    assert common_prefix(pl.Series(["one and the same"] * 50)) == "one and the same"


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [SYSTEM] * 19,
        ["It is"] * 50,
        [f"{number} of the things here" for number in range(50)],
        [SYSTEM + "x"] * 40 + ["something else"] * 10,
        [""] * 30,
        [None] * 30,
    ],
)
def test_few_texts_two_words_or_a_minority_share_none(texts: list[str | None]) -> None:
    assert common_prefix(pl.Series(texts, dtype=pl.String)) == ""


@given(st.lists(st.text(alphabet="ab", max_size=6), min_size=1, max_size=20), st.data())
def test_no_longer_beginning_is_shared_by_as_many(texts: list[str], data: st.DataObject) -> None:
    num = data.draw(st.integers(len(texts) // 2 + 1, len(texts)))
    found, goes_on = shared_beginning(pl.Series(texts, dtype=pl.String), num)
    assert sum(text.startswith(found) for text in texts) >= num
    assert found + goes_on in texts
    counts = Counter(text[: len(found) + 1] for text in texts if len(text) > len(found))
    assert max(counts.values(), default=0) < num


def test_outliers_in_front_do_not_hide_what_the_others_share() -> None:
    texts = ["x", f"{SYSTEM[:9]}y", f"{SYSTEM[:30]}z", *(f"{SYSTEM}{number}" for number in range(40))]
    assert shared_beginning(pl.Series(texts), 38)[0] == SYSTEM
    rows = RowFrames({"prompt": pl.String})
    for text in texts:
        rows.append(pl.DataFrame({"prompt": [text, None]}))
    assert shared_beginning(rows.texts("prompt"), 38)[0] == SYSTEM


def test_texts_of_two_million_characters_do_not_hang() -> None:
    long = "a" * 2_000_000
    assert shared_beginning(pl.Series([long + "a", long + "b"]), 2)[0] == long
