"""The beginning that nearly all texts of a column share, such as a system prompt."""

from __future__ import annotations

from typing import Final

import polars as pl

_SHARE: Final = 0.9
_FEWEST_TEXTS: Final = 20
_FEWEST_WORDS: Final = 3
_SAMPLE: Final = 1_001


def common_prefix(texts: pl.Series) -> str:
    """The longest beginning that at least 90% of the texts share, cut back to whole words.

    "" where there is none of three words, and for fewer than 20 texts, of which one cannot say that they share one.
    """
    if len(texts) < _FEWEST_TEXTS:
        return ""
    texts = texts.fill_null("")
    # Texts with the same beginning stand together in sorted order, and 90% of them hold the middle.
    # Every n-th text: the candidate needs only one text that has the beginning, and sorting all would cost more.
    sample = texts.gather_every(max(1, len(texts) // _SAMPLE)).sort()
    candidate = str(sample[len(sample) // 2])
    low, high = 0, len(candidate)
    while low < high:
        # The share of texts that begin with a prefix falls with its length, so its length is found by bisection.
        middle = (low + high + 1) // 2
        if texts.str.starts_with(candidate[:middle]).mean() >= _SHARE:  # type: ignore[operator]
            low = middle
        else:
            high = middle - 1
    prefix = _whole_words(candidate, low)
    return prefix if len(prefix.split()) >= _FEWEST_WORDS else ""


def without_prefix(texts: pl.Series, prefix: str) -> pl.Series:
    """The texts without this beginning, where they have it."""
    return texts.str.strip_prefix(prefix) if prefix else texts


def _whole_words(text: str, length: int) -> str:
    end = length
    if end < len(text) and text[end].isalnum():
        while end and text[end - 1].isalnum():
            end -= 1
    return text[:end]
