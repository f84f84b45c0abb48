"""What an answer says, sentence by sentence: does the corpus say it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from luthier.core.records.support import support
from luthier.ml.evaluation.grounding.clean import clean
from luthier.ml.evaluation.grounding.corpus import Corpus
from luthier.ml.evaluation.grounding.find import sentences_of
from luthier.ml.evaluation.grounding.passages import Passage

THRESHOLD: Final = 0.8
"""Of a sentence's content words, the share that one passage must hold: the best of `benchmarks/claim_threshold.py`."""
NUM_PASSAGES: Final = 5
FEWEST_WORDS: Final = 3


@dataclass(frozen=True, slots=True)
class ClaimFinding:
    """A sentence of an answer, compared with its nearest passages.

    Attributes:
        sentence: the claim.
        is_supported: enough of its words and all of its numbers are in one passage.
        fraction: of its content words, those that occur in the passage that holds most of them.
        passage: that passage; None where none shares a word.
        numbers: those of the sentence that the passage lacks; with one of them it is not supported.
    """

    sentence: str
    is_supported: bool
    fraction: float
    passage: Passage | None = None
    numbers: tuple[str, ...] = ()


def claims(output: str, corpus: Corpus) -> tuple[str, ...]:
    """The sentences of an answer with at least three content words, each once: what it claims.

    No sentence ends within a citation. Questions and courtesies of three words count, too.
    """
    cleaned = clean(output)
    spans = sentences_of(cleaned, corpus.citations(output))
    found = dict.fromkeys(" ".join(cleaned[start:end].split()) for start, end in spans)
    return tuple(one for one in found if support(one, "").num_content_words >= FEWEST_WORDS)


def claim_findings(output: str, corpus: Corpus, threshold: float = THRESHOLD) -> tuple[ClaimFinding, ...]:
    """Each claim of an answer with the passage that supports it best by its words.

    Words alone: a negation, or the same words in another relation, are not seen (`core.support`).
    """
    return tuple(_held(sentence, corpus, threshold) for sentence in claims(output, corpus))


def _held(sentence: str, corpus: Corpus, threshold: float) -> ClaimFinding:
    best = ClaimFinding(sentence, False, 0.0)
    for passage in corpus.passages.nearest(sentence, NUM_PASSAGES):
        found = support(sentence, passage.text)
        is_supported = found.fraction >= threshold and not found.unsupported_numbers
        if (is_supported, found.fraction) > (best.is_supported, best.fraction):
            best = ClaimFinding(sentence, is_supported, found.fraction, passage, found.unsupported_numbers)
    return best
