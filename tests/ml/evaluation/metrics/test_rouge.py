"""ROUGE and its stemmer against rouge-score and nltk, on texts that hypothesis finds and on English ones."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.ml.evaluation.metrics.rouge import common_subsequence_length, rouge_l, rouge_n, rouge_words, stem

# Parts that meet each rule of the algorithm, in any order: -ational, -alli, -ement, -eed, -ied, double letters, y.
PARTS = st.sampled_from(
    re.findall(
        r"\w+",
        "s ss sses ies ied eed ed ing y e ll tt ss bl at iz al alli ational tional enci anci izer bli entli eli ousli "
        "ization ation ator alism iveness fulness ousness aliti iviti biliti fulli logi icate ative alize iciti ical "
        "ful ness ance ence er ic able ible ant ement ment ent ion sion tion ou ism ate iti ous ive ize a o u b c t w "
        "x yy geo archaeo hop play sk d l news sky",
    )
)
WORD = st.lists(PARTS, min_size=1, max_size=5).map("".join) | st.text("aeiouylstbx", max_size=9) | st.text(max_size=6)
TEXT = st.lists(
    WORD | st.sampled_from(["the", "cat", "cats", "running", "Grüße", "x1", "a-b", "it's", "\n"]), max_size=12
).map(" ".join)


# Imported by the process that runs these tests alone; all collect them.
@functools.cache
def nltk() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@functools.cache
def scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([*(f"rouge{order}" for order in range(1, 6)), "rougeL"], use_stemmer=True)


@given(WORD)
@settings(max_examples=600)
@example("")
@example("İs")
@example("YYYYING")
def test_a_stem_is_that_of_nltk(word: str) -> None:
    assert stem(word) == nltk().stem(word)


def test_the_words_of_the_documentation_have_the_stems_of_nltk() -> None:
    pages = Path(__file__).parents[4] / "docs"
    text = " ".join(page.read_text(encoding="utf-8") for page in nonempty(sorted(pages.glob("*.md"))))
    words = set(re.findall(r"[a-z]{2,}", text.lower()))
    assert len(words) > 3000
    assert [word for word in sorted(words) if stem(word) != nltk().stem(word)] == []


def test_a_word_of_any_length_has_a_stem() -> None:
    assert stem("y" * 20_000 + "ing") == nltk().stem("y" * 20_000 + "ing")


@given(TEXT)
def test_words_are_those_of_rouge_score(text: str) -> None:
    from rouge_score.tokenize import tokenize

    assert rouge_words(text) == tokenize(text, nltk())


@given(TEXT, TEXT)
@settings(max_examples=200)
def test_figures_are_those_of_rouge_score_to_the_last_digit(output: str, reference: str) -> None:
    expected = {name: score.fmeasure for name, score in scorer().score(reference, output).items()}
    found = {f"rouge{order}": rouge_n(order)(output, reference) for order in range(1, 6)}
    assert found | {"rougeL": rouge_l(output, reference)} == expected


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [("", "", 0), ("", "a", 0), ("abcde", "ace", 3), (["the", "cat"], ["cat", "the", "cat"], 2), ("ab" * 70, "ba", 2)],
)
def test_the_longest_common_subsequence_by_hand(first: list[str], second: list[str], length: int) -> None:
    assert common_subsequence_length(first, second) == common_subsequence_length(second, first) == length


def test_a_long_text_of_different_words_takes_no_memory_for_those_that_the_other_lacks() -> None:
    assert common_subsequence_length(range(300_000), [7, 299_999, 5]) == 2
