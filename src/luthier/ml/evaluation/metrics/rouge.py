"""ROUGE and the Porter stemmer that it compares words with, in plain Python.

They give the figures of the packages rouge-score and nltk, which the tests hold them to. nltk imports scipy and
scikit-learn for its stemmer: two to three seconds that the first request of a server would wait for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Final

_WORD: Final = re.compile(r"[a-z0-9]+")
_SHORTEST_STEMMED: Final = 4
_LONGEST_CACHED: Final = 40
"""Longer words are rare, and a cache of them would take the memory of whole texts."""


def rouge_n(order: int) -> Callable[[str, str], float]:
    """The function (output, reference) -> F1 of runs of `order` words.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 2.
    """

    def score(output: str, reference: str) -> float:
        said, meant = _runs(rouge_words(output), order), _runs(rouge_words(reference), order)
        return _f1((said & meant).total(), said.total(), meant.total())

    return score


def rouge_l(output: str, reference: str) -> float:
    """F1 of the longest common subsequence of words.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1.
    """
    said, meant = rouge_words(output), rouge_words(reference)
    return _f1(common_subsequence_length(said, meant), len(said), len(meant))


def rouge_words(text: str) -> list[str]:
    """The words of a text: letters a-z and digits in lower case, those of four characters and more as their stems."""
    return [stem(word) if len(word) >= _SHORTEST_STEMMED else word for word in _WORD.findall(text.lower())]


def _runs(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def _f1(num_shared: int, num_said: int, num_meant: int) -> float:
    precision, recall = num_shared / max(num_said, 1), num_shared / max(num_meant, 1)
    return 2 * precision * recall / (precision + recall) if num_shared else 0.0


def common_subsequence_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence, such as of words or characters.

    Source: Hyyrö, "Bit-parallel LCS-length computation revisited", 2004, section 3.
    """
    places = dict.fromkeys(second, 0)
    for index, item in enumerate(first):
        # One integer an item with a bit for each of its positions: Python's integers have any length. Of items that the
        # other one has, too: of a long text with many different words the rest would take gigabytes.
        if item in places:
            places[item] |= 1 << index
    full = (1 << len(first)) - 1
    row = full
    for item in second:
        match = row & places[item]
        row = ((row + match) | (row - match)) & full
    # Every 0 in the row is one item of the subsequence.
    return len(first) - row.bit_count()


_IRREGULAR: Final = {
    "skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news",
    "innings": "inning", "inning": "inning", "outings": "outing", "outing": "outing",
    "cannings": "canning", "canning": "canning", "howe": "howe",
    "proceed": "proceed", "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip
_VOWELS: Final = frozenset("aeiou")
# Suffix -> what takes its place; of several that a word ends with, the first one counts.
_PLURALS: Final = {"sses": "ss", "ies": "i", "ss": "ss", "s": ""}
_DOUBLE_SUFFIXES: Final = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble",
    "fulli": "ful", "logi": "log",
}  # fmt: skip
_SUFFIXES: Final = {
    "icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": "",
}  # fmt: skip
_ENDINGS: Final = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti",
    "ous", "ive", "ize",
)  # fmt: skip


def stem(word: str) -> str:
    """The stem of an English word by Porter's algorithm, with NLTK's extensions: irregular forms, `dies`, `enjoy`.

    Source: Porter, "An algorithm for suffix stripping", 1980, Program 14(3), pages 130 to 137.
    """
    return _cached_stem(word) if len(word) <= _LONGEST_CACHED else _stem(word)


def _stem(word: str) -> str:
    lower = word.lower()
    if lower in _IRREGULAR:
        return _IRREGULAR[lower]
    if len(word) <= 2:
        return lower
    for step in (_singular, _without_tense, _with_i, _single_suffix, _without_suffix, _without_ending, _without_e):
        lower = step(lower)
    # -ll at the end of a longer word becomes -l
    return lower[:-1] if lower.endswith("ll") and _measure(lower[:-1]) > 1 else lower


_cached_stem = lru_cache(maxsize=1 << 14)(_stem)


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) == 4:  # dies, ties: not to be cut to di, ti
        return word[:-1]
    for suffix, other in _PLURALS.items():
        if word.endswith(suffix):
            return word.removesuffix(suffix) + other
    return word


def _without_tense(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]  # died, as above
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    rest = next((word.removesuffix(end) for end in ("ed", "ing") if word.endswith(end)), "")
    if "v" not in _form(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if len(rest) > 1 and rest[-1] == rest[-2] and _form(rest)[-1] == "c":
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _is_short(rest) else rest


def _with_i(word: str) -> str:
    rest = word[:-1]
    return rest + "i" if word.endswith("y") and len(rest) > 1 and _form(rest)[-1] == "c" else word


def _single_suffix(word: str) -> str:
    while word.endswith("alli") and _measure(word[:-4]) > 0:
        word = word[:-2]
    for suffix, other in _DOUBLE_SUFFIXES.items():
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            # The l of -logi counts as a part of the stem, so that geology and archaeology end alike.
            return rest + other if _measure(rest + "l" if suffix == "logi" else rest) > 0 else word
    return word


def _without_suffix(word: str) -> str:
    for suffix, other in _SUFFIXES.items():
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            return rest + other if _measure(rest) > 0 else word
    return word


def _without_ending(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending):
            rest = word.removesuffix(ending)
            return rest if _measure(rest) > 1 and (ending != "ion" or rest.endswith(("s", "t"))) else word
    return word


def _without_e(word: str) -> str:
    if not word.endswith("e"):
        return word
    measure = _measure(word[:-1])
    return word[:-1] if measure > 1 or (measure == 1 and not _is_short(word[:-1])) else word


def _form(word: str) -> str:
    """`c` for each consonant, `v` for each vowel; y is a vowel behind a consonant."""
    form: list[str] = []
    for letter in word:
        is_vowel = letter in _VOWELS or (letter == "y" and bool(form) and form[-1] == "c")
        form.append("v" if is_vowel else "c")
    return "".join(form)


def _measure(word: str) -> int:
    """How often consonants follow vowels: m of Porter's [C](VC){m}[V]."""
    return _form(word).count("vc")


def _is_short(word: str) -> bool:
    """Whether a word ends like -hop: consonant, vowel, consonant other than w, x and y; or is a vowel and one."""
    form = _form(word)
    return form == "vc" or (form.endswith("cvc") and word[-1] not in "wxy")
