"""The words of texts as 64-bit hashes in one flat array, for all that compares texts by the words they share.

Written for arrays rather than strings: half a million reviews take seconds, and the result is the same byte for byte
on every machine and version.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.ports import Progress, SilentProgress
from luthier.data.normalise import normalised

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

BLOCK_TEXTS: Final = 4_096
_BLOCK_CHARACTERS: Final = 2_000_000
_PRIME: Final = 0x9E3779B97F4A7C15 | 1
_INVERSE: Final = pow(_PRIME, -1, 2**64)
_SPACE, _LETTER, _ALONE = 0, 1, 2
# Scripts that put no space between words: each of their characters counts as a word.
_UNSPACED: Final = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # CJK ideographs
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a block of texts. hashes: uint64 of each word, text after text. counts: words in each text."""

    start: int
    hashes: U64
    counts: I64

    @property
    def texts(self) -> I64:
        """For each word the text it stands in, counted from 0 within the block."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def word_blocks(texts: pl.Series, progress: Progress | None = None, title: str = "read words") -> Iterator[Words]:
    """The words of all texts in blocks of at most 4,096 texts and about two million characters.

    A word is a run of letters, digits and marks after `normalise.normalised` (so case, white space and punctuation do
    not count); a character of a script without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) is a word of its
    own. A null counts as an empty text.
    """
    with (progress or SilentProgress()).task(title, len(texts), "row") as task:
        for start, stop in _bounds(texts):
            yield _words(start, texts.slice(start, stop - start).fill_null("").to_list())
            task.advance(stop - start)


def mixed(values: U64) -> U64:
    """Spread all bits over all bits (the finaliser of SplitMix64; Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _bounds(texts: pl.Series) -> Iterator[tuple[int, int]]:
    sizes = texts.str.len_bytes().fill_null(0).to_numpy()
    ends = np.cumsum(sizes, dtype=np.int64)
    start = 0
    while start < len(texts):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + _BLOCK_CHARACTERS, side="right"))
        stop = min(max(stop, start + 1), start + BLOCK_TEXTS, len(texts))
        yield start, stop
        start = stop


def _words(start: int, texts: list[str]) -> Words:
    folded = [text.lower() if text.isascii() else normalised(text) for text in texts]
    lengths = np.fromiter(map(len, folded), dtype=np.int64, count=len(folded))
    joined = "\n".join(folded)
    if joined.isascii():
        codes: npt.NDArray[np.integer] = np.frombuffer(joined.encode("ascii"), dtype=np.uint8)
        classes, values = _ascii()
    else:
        codes = np.frombuffer(joined.encode("utf-32-le"), dtype="<u4")
        classes, values = _unicode()
    starts, ends = _word_bounds(classes[codes])
    hashes = _hashes(values[codes], starts, ends)
    text_ends = np.cumsum(lengths + 1)
    counts = np.diff(np.searchsorted(starts, text_ends), prepend=0)
    return Words(start, hashes, counts.astype(np.int64))


def _word_bounds(classes: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
    """Where words start, and one past where they end."""
    before = np.concatenate(([np.uint8(_SPACE)], classes[:-1]))
    is_start = (classes == _ALONE) | ((classes == _LETTER) & (before != _LETTER))
    after = np.concatenate((classes[1:], [np.uint8(_SPACE)]))
    is_end = (classes == _ALONE) | ((classes == _LETTER) & (after != _LETTER))
    return np.flatnonzero(is_start), np.flatnonzero(is_end) + 1


def _hashes(values: U64, starts: I64, ends: I64) -> U64:
    """Polynomial hash of each word modulo 2^64, from prefix sums: no loop over words or characters."""
    prefix = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * _powers(_PRIME, len(values)), out=prefix[1:])
    return mixed((prefix[ends] - prefix[starts]) * _powers(_INVERSE, len(values) + 1)[starts])


def _powers(base: int, count: int) -> U64:
    most = _BLOCK_CHARACTERS + BLOCK_TEXTS + 1
    return _kept_powers(base, most)[:count] if count <= most else _made_powers(base, count)


@cache
def _kept_powers(base: int, count: int) -> U64:
    return _made_powers(base, count)


def _made_powers(base: int, count: int) -> U64:
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)


@cache
def _ascii() -> tuple[npt.NDArray[np.uint8], U64]:
    return _classes(128), _values(128)


@cache
def _unicode() -> tuple[npt.NDArray[np.uint8], U64]:
    return _classes(0x110000), _values(0x110000)


def _classes(count: int) -> npt.NDArray[np.uint8]:
    categories = map(unicodedata.category, map(chr, range(count)))
    classes = np.fromiter((category[0] in "LNM" for category in categories), dtype=np.uint8, count=count)
    for first, last in _UNSPACED:
        classes[first : last + 1][classes[first : last + 1] == _LETTER] = _ALONE
    return classes


def _values(count: int) -> U64:
    return mixed(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_PRIME))
