"""The answer of the nearest training row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tests.ml.prompting.test_instructions import row

from luthier.ml.baselines.nearest import Array, nearest_by_embeddings, nearest_by_words, nearest_examples
from luthier.ml.baselines.rows import NotApplicable, TaskRow

ROWS = [
    TaskRow("How long does delivery take?", "Three days."),
    TaskRow("How do I return a pair of shoes?", "Use the label in the box."),
    TaskRow("Do you ship to Norway?", "Yes."),
]


def by_hand(rows: Sequence[TaskRow], prompt: str) -> list[float]:
    """BM25 written out (Robertson and Zaragoza, 2009, equation 3.15), with k1 = 1.5 and b = 0.75."""
    texts = [row.prompt.lower().replace("?", "").split() for row in rows]
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in set(prompt.lower().replace("?", "").split()):
            num = sum(word in other for other in texts)
            count = text.count(word)
            rarity = np.log(1 + (len(texts) - num + 0.5) / (num + 0.5))
            score += rarity * count * 2.5 / (count + 1.5 * (0.25 + 0.75 * len(text) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("prompt", ["return shoes", "delivery to Norway", "How long", "Do you do it"])
def test_words_as_bm25_has_them(prompt: str) -> None:
    best = int(np.argmax(by_hand(ROWS, prompt)))
    assert nearest_by_words(ROWS, [prompt]) == [ROWS[best].answer]


def test_a_prompt_without_a_known_word_gets_the_first_row() -> None:
    assert nearest_by_words(ROWS, ["xyzzy"]) == ["Three days."]


class Words:
    """Two directions of meaning, and words that say nothing."""

    KNOWN = ("shoes", "boots", "delivery", "shipping", "the")

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self.KNOWN.index(word) for word in text.split() if word in self.KNOWN] for text in texts]

    def vectors(self, ids: Sequence[int]) -> Array:
        table = np.array([[1, 0, 0.1], [0.9, 0.1, 0], [0, 1, 0.1], [0.1, 0.9, 0], [0.5, 0.5, 1]], dtype=np.float32)
        return table[list(ids)]


def test_meaning_by_embeddings() -> None:
    rows = [TaskRow("the shoes", "Footwear."), TaskRow("the delivery", "Parcels."), TaskRow("the", "What?")]
    assert nearest_by_embeddings(rows, ["the boots", "the shipping"], Words()) == ["Footwear.", "Parcels."]


def test_without_rows_or_words_there_is_no_nearest_one() -> None:
    with pytest.raises(NotApplicable):
        nearest_by_words([], ["x"])
    with pytest.raises(NotApplicable, match="no words"):
        nearest_by_words([TaskRow("?", "x")], ["x"])
    with pytest.raises(NotApplicable, match="no tokens"):
        nearest_by_embeddings([TaskRow("?", "x")], ["?"], Words())


POOL = [
    row(1, "spruce top with maple back", "violin"),
    row(2, "cedar top", "guitar"),
    row(3, "spruce top", "piano"),
    row(4, "brass bell", "trumpet"),
]


def test_the_nearest_comes_last() -> None:
    (found,) = nearest_examples(POOL, [row(9, "a maple back and a spruce top", "?")], 2)
    assert [shot.reference for shot in found] == ["piano", "violin"]


def test_rows_that_are_asked_are_never_shown_and_fewer_are_shown_where_the_pool_has_fewer() -> None:
    asked = [row(8, "spruce top", "other"), row(9, "brass bell", "?")]
    found = nearest_examples(POOL, asked, 4)
    assert [len(shots) for shots in found] == [2, 2]
    assert {shot.id for shots in found for shot in shots} == {"train.jsonl:1", "train.jsonl:2"}
    held = nearest_examples(POOL, [row(9, "cedar", "?")], 4, held_out=[row(7, "cedar top", "?")])
    assert "train.jsonl:2" not in {shot.id for shot in held[0]}
    assert nearest_examples(POOL, asked, 0) == [(), ()]
    assert nearest_examples([], asked, 2) == [(), ()]


def test_prompts_without_words_have_none_that_are_near() -> None:
    with pytest.raises(NotApplicable, match="no words"):
        nearest_examples([row(1, "!!", "a"), row(2, "??", "b")], [row(3, "...", "?")], 1)
