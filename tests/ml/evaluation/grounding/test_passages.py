"""Passages and their ranking."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.evaluation.grounding.corpus import MAX_WORDS, Passages


def test_the_passage_with_the_rarest_words_is_nearest() -> None:
    passages = Passages({"a": "The cat sat.", "b": "The dog sat on the violin.", "c": "A dog ate the cat."})
    assert [one.document for one in passages.nearest("a violin and a dog", 2)] == ["b", "c"]
    assert passages.nearest("nothing shared", 3) == []
    assert passages.nearest("", 3) == []


def test_the_score_is_bm25() -> None:
    """Two passages of 2 and 4 content words, one shared word: worked out by hand."""
    texts = {"short": "violin sonata", "long": "violin concerto orchestra strings", "other": "piano keys"}
    passages = Passages(texts)
    mean = (2 + 4 + 2) / 3
    weight = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = [weight / (1 + 1.2 * (0.25 + 0.75 * length / mean)) for length in (2, 4)]
    scores = passages.scores("violin")
    assert scores == pytest.approx(dict(enumerate(expected)))


def test_long_texts_are_cut_at_sentences_and_overlap_by_one() -> None:
    sentences = [f"Sentence {number} is about number {number} and it has a few more words." for number in range(40)]
    found = Passages({"a": " ".join(sentences)}).nearest("sentence about number", 100)
    assert len(found) > 3
    assert all(len(one.text.split()) <= MAX_WORDS for one in found)
    assert all(any(sentence in one.text for one in found) for sentence in sentences)


@given(st.text(alphabet="ab .\n", max_size=2_000))
def test_no_word_is_lost_and_no_passage_is_long(text: str) -> None:
    passages = Passages({"a": text})
    held = {word for one in passages for word in one.text.split()}
    assert held == set(text.split())
    assert all(len(one.text.split()) <= MAX_WORDS for one in passages)
