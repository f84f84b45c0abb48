"""Words as hashes: the same words give the same hashes, wherever they stand."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.text.words import word_blocks


def words_of(*texts: str | None) -> list[list[int]]:
    found: list[list[int]] = []
    for block in word_blocks(pl.Series(texts, dtype=pl.String)):
        assert block.start == len(found)
        found.extend(part.tolist() for part in np.split(block.hashes, np.cumsum(block.counts)[:-1]))
    return found


def test_case_punctuation_space_and_unicode_forms_do_not_count() -> None:
    first, second = words_of("It's  Cafe\u0301,\n\tSTRASSE 12!", "it s café straße (12)")
    assert first == second
    assert len(first) == 5


def test_scripts_without_spaces_count_by_character() -> None:
    assert [len(words) for words in words_of("你好，世界", "สวัสดี", "かな 漢字", "한국어 문장")] == [4, 6, 4, 2]


def test_empty_null_and_wordless_texts_have_no_words() -> None:
    assert words_of("", None, "!? ... \n", "a") == [[], [], [], words_of("a")[0]]


def test_a_text_in_another_script_beside_it_changes_no_hash() -> None:
    assert words_of("plain words", "é")[0] == words_of("plain words")[0]


@given(st.lists(st.text(alphabet="ab c\u00e9\u4e16_.\n", max_size=12), max_size=12))
def test_equal_words_and_only_those_have_equal_hashes(texts: list[str]) -> None:
    hashes = words_of(*texts)
    words = [re.findall(r"\u4e16|[abcé]+", text) for text in texts]
    assert [len(of) for of in hashes] == [len(of) for of in words]
    pairs = {
        (word, number)
        for of, numbers in zip(words, hashes, strict=True)
        for word, number in zip(of, numbers, strict=True)
    }
    assert len(pairs) == len({word for word, _ in pairs}) == len({number for _, number in pairs})


def test_anagrams_differ() -> None:
    (words,) = words_of("abc acb bac bca cab cba a aa aaa")
    assert len(set(words)) == 9


def test_blocks_hold_all_texts_in_order_whatever_their_size() -> None:
    texts = ["x " * 1_500_000, "a", "y" * 3_000_000, *["b c"] * 9_000]
    counts = np.concatenate([block.counts for block in word_blocks(pl.Series(texts))])
    assert counts.tolist() == [1_500_000, 1, 1, *[2] * 9_000]


@pytest.mark.parametrize("length", [255, 256, 257, 10_000_000])
def test_a_word_however_long_is_told_from_its_neighbours_and_read_in_one_go(length: int) -> None:
    word = "7" * length
    first, second, third = words_of(f"see {word} there", word[:-1] + "8", word)
    assert (len(first), len(second)) == (3, 1)
    assert third == [first[1]] != second
