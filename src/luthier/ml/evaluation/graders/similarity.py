"""How like one text is another, 0 to 1, for a single pair: what `text_similarity` graders and rewards are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from luthier.core.graders import Similarity

_ROUGE: Final = {
    "rouge_1": "rouge1",
    "rouge_2": "rouge2",
    "rouge_3": "rouge3",
    "rouge_4": "rouge4",
    "rouge_5": "rouge5",
    "rouge_l": "rougeL",
}
_GLEU_ORDERS: Final = 4


def similarity(kind: Similarity) -> Callable[[str, str], float]:
    """The function (output, reference) -> 0 to 1 of that name."""
    if kind in _ROUGE:
        from rouge_score.rouge_scorer import RougeScorer  # takes seconds, and few graders need it

        name = _ROUGE[kind]
        scorer = RougeScorer([name], use_stemmer=True)
        return lambda output, reference: float(scorer.score(reference, output)[name].fmeasure)
    plain: dict[str, Callable[[str, str], float]] = {"fuzzy_match": fuzzy_match, "bleu": sentence_bleu, "gleu": gleu}
    return plain[kind]


def sentence_bleu(output: str, reference: str) -> float:
    """BLEU of one sentence over 100, exponential smoothing, of no more orders than the output has words.

    Source: Post, 2018, arXiv:1804.08771 (sacrebleu's sentence_bleu).
    """
    import sacrebleu

    return min(1.0, max(0.0, float(sacrebleu.sentence_bleu(output, [reference]).score) / 100.0))


def gleu(output: str, reference: str) -> float:
    """The smaller of precision and recall over all n-grams of 1 to 4 words, split at white space.

    Source: Wu et al., 2016, "Google's Neural Machine Translation System", arXiv:1609.08144, section 7.3.
    """
    said, meant = _grams(output.split()), _grams(reference.split())
    most = max(said.total(), meant.total())
    return (said & meant).total() / most if most else 1.0


def _grams(words: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(words[i : i + order]) for order in range(1, _GLEU_ORDERS + 1) for i in range(len(words) - order + 1)
    )


def fuzzy_match(output: str, reference: str) -> float:
    """2 L / (m + n) with L the length of the longest common subsequence of characters; 1 for two empty texts.

    One minus the insertions and deletions between the two, as a share of all characters. L bit by bit: Hyyrö, 2004,
    "Bit-parallel LCS-length computation revisited", section 3.
    """
    if not output and not reference:
        return 1.0
    places: dict[str, int] = {}
    for index, character in enumerate(output):
        # One integer a character with a bit for each of its positions: Python's integers have any length.
        places[character] = places.get(character, 0) | 1 << index
    full = (1 << len(output)) - 1
    row = full
    for character in reference:
        match = row & places.get(character, 0)
        row = ((row + match) | (row - match)) & full
    # Every 0 in the row is one character of the longest common subsequence.
    return 2.0 * (len(output) - row.bit_count()) / (len(output) + len(reference))
