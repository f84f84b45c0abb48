"""A corpus in passages, and the ones nearest to a sentence by BM25."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from luthier.core.records.support import content_words
from luthier.core.text.sentences import sentence_spans

MAX_WORDS: Final = 120
_WORD: Final = re.compile(r"\S+")
_SATURATION, _LENGTH_SHARE = 1.2, 0.75


@dataclass(frozen=True, slots=True)
class Passage:
    """A few sentences of a document that follow each other.

    Attributes:
        document: name of the document.
        text: the sentences in one line.
    """

    document: str
    text: str


class Passages:
    """Passages of at most 120 words at the ends of sentences, each with the last sentence of the one before it.

    Ranking: BM25 with k1 = 1.2 and b = 0.75, the inverse document frequency that never is negative (Robertson and
    Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; Lucene's form of it).
    """

    def __init__(self, documents: Mapping[str, str]) -> None:
        self._passages = [one for name, text in documents.items() for one in _passages(name, text)]
        self._holders: dict[str, list[tuple[int, int]]] = {}
        lengths = []
        for place, passage in enumerate(self._passages):
            counts = Counter(content_words(passage.text))
            lengths.append(counts.total())
            for word, count in counts.items():
                self._holders.setdefault(word, []).append((place, count))
        mean = sum(lengths) / max(1, len(lengths))
        # The part of BM25's denominator that depends on the passage alone, computed once.
        self._damping = [_SATURATION * (1 - _LENGTH_SHARE + _LENGTH_SHARE * one / max(1.0, mean)) for one in lengths]

    def __iter__(self) -> Iterator[Passage]:
        return iter(self._passages)

    def scores(self, text: str) -> dict[int, float]:
        """The score of each passage that shares a word with the text, by its place."""
        found: dict[int, float] = {}
        for word in sorted(set(content_words(text))):
            holders = self._holders.get(word, [])
            weight = math.log1p((len(self._passages) - len(holders) + 0.5) / (len(holders) + 0.5))
            for place, count in holders:
                found[place] = found.get(place, 0.0) + weight * count / (count + self._damping[place])
        return found

    def nearest(self, text: str, num: int) -> list[Passage]:
        """At most `num` passages that share words with the text, the best first; of equals the earlier."""
        scores = self.scores(text)
        best = heapq.nlargest(num, scores, key=lambda place: (scores[place], -place))
        return [self._passages[place] for place in best]


def _passages(document: str, text: str) -> Iterator[Passage]:
    held: list[tuple[int, int, int]] = []
    for start, end, length in _pieces(text):
        if held and sum(one[2] for one in held) + length > MAX_WORDS:
            yield _passage(document, text, held)
            held = held[-1:] if held[-1][2] + length <= MAX_WORDS else []
        held.append((start, end, length))
    if held:
        yield _passage(document, text, held)


def _pieces(text: str) -> Iterator[tuple[int, int, int]]:
    """(start, end, words) of each sentence; one of more than 120 words in pieces."""
    for start, end in sentence_spans(text):
        found = [start + word.end() for word in _WORD.finditer(text[start:end])]
        begin = start
        for place in range(0, len(found), MAX_WORDS):
            last = found[place : place + MAX_WORDS]
            yield begin, last[-1], len(last)
            begin = last[-1]


def _passage(document: str, text: str, held: list[tuple[int, int, int]]) -> Passage:
    return Passage(document, " ".join(text[held[0][0] : held[-1][1]].split()))
