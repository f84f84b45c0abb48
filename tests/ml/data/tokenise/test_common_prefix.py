"""The beginning that nearly all prompts share."""

from __future__ import annotations

import polars as pl
import pytest

from luthier.ml.data.tokenise.shared_prefix import common_prefix, without_prefix

SYSTEM = "You are a helpful assistant. Answer briefly.\n"


def test_it_is_found_though_a_few_rows_lack_it() -> None:
    texts = pl.Series([f"{SYSTEM}{word} is what?" for word in "abcdefghijklmnopqrstuvwxyz" * 10] + ["other"] * 20)
    assert common_prefix(texts) == SYSTEM
    assert without_prefix(texts, SYSTEM)[0] == "a is what?"
    assert without_prefix(texts, SYSTEM)[-1] == "other"


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
