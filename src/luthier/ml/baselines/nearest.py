"""The answer of the training row whose prompt is nearest: by words (BM25), or by the base model's token embeddings.

Few-shot examples that are chosen for each prompt are the nearest rows, too; the nearest one comes last, right before
the question.

Sources: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; Arora, Liang and Ma, "A
Simple but Tough-to-Beat Baseline for Sentence Embeddings", 2017 (weighted mean of word vectors, less their first
principal component); Liu et al., "What Makes Good In-Context Examples for GPT-3?", 2021, arXiv:2101.06804 (examples
near the question do better than drawn ones).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np

from luthier.core.dataset import Example
from luthier.core.ids import sha256_document
from luthier.ml.baselines.rows import MAX_ROWS, WORDS, NotApplicable, TaskRow, evenly, prompt_text, within
from luthier.ml.evaluation.few_shot import usable_shots

_SATURATION: Final = 1.5
"""k1: how fast further occurrences of a word stop to count."""
_LENGTH: Final = 0.75
"""b: how much a long text is held against its words."""
_SMOOTHING: Final = 1e-3
"""a of the weight a / (a + p) of a token with frequency p."""
_BATCH: Final = 256
MAX_WORD_CHARACTERS: Final = 8_000_000
"""Of training prompts whose words are indexed; of more rows, equally spaced ones. Counting words takes the time."""
_MAX_CHARACTERS: Final = 2_000
"""Of a prompt that is embedded: its end, where the question is."""
_MAX_TOKENISED: Final = 2_000_000
"""Characters of training prompts that are embedded; of more rows, equally spaced ones. Tokenising takes the time."""

Array = np.ndarray[Any, np.dtype[np.float32]]


class TokenEmbeddings(Protocol):
    """A table of token vectors with its tokenizer."""

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens."""
        ...

    def vectors(self, ids: Sequence[int]) -> Array:
        """The vectors of these tokens: [ids, width]."""
        ...


class Bm25:
    """Texts, and how well they match others by their words.

    Args:
        texts: at least one.

    Raises:
        NotApplicable: texts without words.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self._counting = CountVectorizer(token_pattern=WORDS, dtype=np.float32)
        try:
            counts = self._counting.fit_transform(texts).tocsr()
        except ValueError as error:
            raise NotApplicable("the texts hold no words") from error
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        num_with = np.bincount(counts.indices, minlength=counts.shape[1])
        # log1p keeps the weight positive for words that most texts have.
        rarity = np.log1p((len(texts) - num_with + 0.5) / (num_with + 0.5)).astype(np.float32)
        # Only the counts that are there are computed with: the matrix stays sparse.
        of_row = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        norm = _SATURATION * (1 - _LENGTH + _LENGTH * lengths / max(float(lengths.mean()), 1.0))
        counts.data = counts.data * (_SATURATION + 1) / (counts.data + norm[of_row]) * rarity[counts.indices]
        self._weights = counts

    def scores(self, queries: Sequence[str]) -> Iterator[Array]:
        """[queries, texts], in blocks of some hundred queries."""
        # A word counts once in a query, however often it is there.
        asked = self._counting.transform(queries).sign()
        for start in range(0, len(queries), _BATCH):
            yield np.asarray((asked[start : start + _BATCH] @ self._weights.T).todense())


def rows_to_index(rows: Sequence[TaskRow]) -> Sequence[TaskRow]:
    """The rows whose words are indexed: equally spaced ones where prompts are long."""
    return within(rows, MAX_WORD_CHARACTERS)


def nearest_by_words(rows: Sequence[TaskRow], prompts: Sequence[str]) -> list[str]:
    """The answer of the training row with the highest BM25 score; of equal ones the first in the rows.

    Raises:
        NotApplicable: no training rows, or prompts without words.
    """
    _check(rows)
    rows = rows_to_index(rows)
    return [rows[best[0]].answer for best in ranked_by_words([row.prompt for row in rows], prompts, 1)]


def ranked_by_words(texts: Sequence[str], prompts: Sequence[str], num: int) -> list[list[int]]:
    """For each prompt the places of the `num` texts with the highest BM25 score, the best first; fewer if there are.

    Of equal ones the first in the texts comes first.

    Raises:
        NotApplicable: texts without words.
    """
    found: list[list[int]] = []
    for scores in Bm25(texts).scores(prompts):
        # argmax takes the first of equals, and so does a stable sort; sorting all for one would take the time.
        best = scores.argmax(axis=1)[:, None] if num == 1 else np.argsort(-scores, axis=1, kind="stable")[:, :num]
        found += best.tolist()
    return found


def rows_to_embed(rows: Sequence[TaskRow]) -> Sequence[TaskRow]:
    """The rows that are embedded, by the ends of their prompts: equally spaced ones where prompts are long."""
    return within([TaskRow(row.prompt[-_MAX_CHARACTERS:], row.answer) for row in rows], _MAX_TOKENISED)


def nearest_by_embeddings(rows: Sequence[TaskRow], prompts: Sequence[str], table: TokenEmbeddings) -> list[str]:
    """The answer of the training row whose prompt has the most similar embedding (cosine).

    Args:
        rows: the training rows.
        prompts: the texts to answer.
        table: token vectors, such as the base model's own.

    Raises:
        NotApplicable: no training rows.
    """
    _check(rows)
    rows = rows_to_embed(rows)
    seen = table.token_ids([row.prompt for row in rows])
    asked = table.token_ids([prompt[-_MAX_CHARACTERS:] for prompt in prompts])
    # Only the vectors of tokens that occur: the whole table may be hundreds of megabytes.
    known = sorted({one for ids in (*seen, *asked) for one in ids})
    if not known:
        raise NotApplicable("the prompts hold no tokens")
    place = {one: number for number, one in enumerate(known)}
    vectors = table.vectors(known)
    frequency = np.zeros(len(known))
    for ids in seen:
        for one in ids:
            frequency[place[one]] += 1
    weights = _SMOOTHING / (_SMOOTHING + frequency / max(frequency.sum(), 1.0))
    weighted = (vectors * weights[:, None]).astype(np.float32)
    own = np.stack([_mean(weighted, [place[one] for one in ids]) for ids in seen])
    others = np.stack([_mean(weighted, [place[one] for one in ids]) for ids in asked])
    # The common direction says what all prompts share (an instruction), found on the training rows alone.
    common = np.linalg.svd(own[list(evenly(range(len(own)), 2_000))], full_matrices=False)[2][0]
    own, others = (_directions(one - np.outer(one @ common, common)) for one in (own, others))
    # In blocks: all similarities at once would be prompts x rows numbers.
    best = [(others[start : start + _BATCH] @ own.T).argmax(axis=1) for start in range(0, len(prompts), _BATCH)]
    return [rows[int(number)].answer for number in np.concatenate(best)]


def _check(rows: Sequence[TaskRow]) -> None:
    if not rows:
        raise NotApplicable("there are no training rows")


def _mean(weighted: Array, places: Sequence[int]) -> Array:
    found: Array = weighted[list(places)].mean(axis=0) if places else np.zeros(weighted.shape[1], dtype=np.float32)
    return found


def _directions(vectors: Array) -> Array:
    found: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return found


_WORD: Final = re.compile(r"\w")


def have_words(pool: Sequence[Example]) -> bool:
    """Whether any prompt holds a word, so that some can be nearer than others."""
    return any(_WORD.search(prompt_text(row)) for row in pool)


def nearest_examples(
    pool: Sequence[Example], rows: Sequence[Example], num: int, *, held_out: Sequence[Example] = ()
) -> list[tuple[Example, ...]]:
    """For each row the examples of the pool that are nearest by BM25, the nearest one last.

    Equal conversations are taken once, and never one whose prompt is also in `rows` or `held_out`. Of more than
    `MAX_ROWS` rows a sample by a hash of their content is searched.

    Args:
        pool: rows to choose from, such as the training rows.
        rows: the rows to be answered.
        num: examples a row; fewer where the pool has fewer.
        held_out: further rows whose prompts are never shown.

    Raises:
        NotApplicable: the prompts of the pool hold no words.
    """
    usable = usable_shots(pool, [*rows, *held_out])
    keys = list(usable)
    if len(keys) > MAX_ROWS:
        chosen = set(sorted(keys, key=sha256_document)[:MAX_ROWS])
        keys = [key for key in keys if key in chosen]
    shown = [usable[key] for key in keys]
    if not shown or num < 1:
        return [()] * len(rows)
    best = ranked_by_words([prompt_text(one) for one in shown], [prompt_text(row) for row in rows], num)
    return [tuple(shown[place] for place in reversed(places)) for places in best]
