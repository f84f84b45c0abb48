"""What metrics of words can see of an answer, by its script.

ROUGE knows the letters a-z and digits alone: of an answer in Russian, Arabic or Chinese it sees nothing, and every
system has 0. BLEU, token F1 and counts of words split at spaces, which Chinese, Japanese and Thai do not write. chrF
compares characters and is the same for every script.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

# Scripts without spaces between words, by how many signs make a word: Chinese and Japanese; Thai, Lao, Burmese, Khmer.
_UNSPACED: Final = {
    2: re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"),
    4: re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"),
}
_WORD: Final = re.compile(r"[^\W_]+")
_LETTER: Final = re.compile(r"[^\W\d_]")
_SEEN_BY_ROUGE: Final = re.compile("[a-z]")
NUM_LOOKED_AT: Final = 1_000
"""Texts by which the script of all of them is decided, equally spaced."""
NOT_SEEN: Final = (
    "ROUGE sees the letters a-z and digits alone, and most letters of the answers are others, so its figures say "
    "little; chrF compares all characters."
)
"""The caution on figures of ROUGE where it does not see the answers."""
_OF_SPACES: Final = ("bleu", "token_f1")
_EQUAL: Final = ("exact_match", "exact_match_ignoring_case")
_LIKELIHOOD: Final = ("perplexity", "bits_per_byte")


def num_words(text: str) -> int:
    """The words of a text; of scripts without spaces two signs count as a word, of Thai and its like four."""
    rest, num = text, 0
    for signs_per_word, pattern in _UNSPACED.items():
        rest, num_signs = pattern.subn(" ", rest)
        num += -(-num_signs // signs_per_word)
    # Marks of their own, such as a dash, count where all words are between spaces, and full stops of Chinese do not.
    return num + len(_WORD.findall(rest)) if num else len(text.split())


def is_seen_by_rouge(texts: Sequence[str]) -> bool:
    """Whether at least half of the letters of these texts are a-z, in any case; also where there are no letters."""
    letters = [_LETTER.findall(text.lower()) for text in _some(texts)]
    num_seen = sum(len(_SEEN_BY_ROUGE.findall("".join(found))) for found in letters)
    return 2 * num_seen >= sum(map(len, letters))


def text_metrics_in_order(texts: Sequence[str]) -> tuple[str, ...]:
    """Metrics of answers to free text, from the most to the least informative for the script of these references."""
    if is_seen_by_rouge(texts):
        return ("rouge_l", "chrf", *_OF_SPACES, *_EQUAL, *_LIKELIHOOD)
    if _is_without_spaces(texts):
        return ("chrf", *_LIKELIHOOD, *_EQUAL, *_OF_SPACES, "rouge_l")
    return ("chrf", *_OF_SPACES, *_EQUAL, *_LIKELIHOOD, "rouge_l")


def _is_without_spaces(texts: Sequence[str]) -> bool:
    """Whether at least half of the letters are of scripts without spaces between words."""
    chosen = list(_some(texts))
    num_signs = sum(len(pattern.findall(text)) for text in chosen for pattern in _UNSPACED.values())
    return 2 * num_signs >= sum(len(_LETTER.findall(text)) for text in chosen)


def _some(texts: Sequence[str]) -> Iterable[str]:
    return texts[:: max(1, len(texts) // NUM_LOOKED_AT)]
