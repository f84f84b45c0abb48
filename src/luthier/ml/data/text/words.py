"""The words of texts as 64-bit hashes in one flat array, for all that compares texts by the words they share.

Written for arrays rather than strings: half a million reviews take seconds, and the result is the same byte for byte
on every machine and version.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.files.row_frames import Texts, text_parts
from luthier.ml.data.text.normalise import normalised

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

BLOCK_TEXTS: Final = 4_096
_BLOCK_BYTES: Final = 200_000
_LONG_BYTES: Final = 256
_SPREAD: Final = 0x9E3779B97F4A7C15
# Beyond this code Unicode has no letters (15.1: the last is U+323AF), only variation selectors and private use.
_NUM_CODES: Final = 0x32401
_MASKS: Final = np.array([2 ** (8 * size) - 1 for size in range(9)], dtype=np.uint64)
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
    (0x20000, 0x323FF),
)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a block of texts.

    Attributes:
        start: position of the block's first text among all texts.
        hashes: uint64 [words], text after text.
        counts: int64 [texts], words in each text.
    """

    start: int
    hashes: U64
    counts: I64

    @property
    def texts(self) -> I64:
        """For each word the text it is in, counted from 0 within the block."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def word_blocks(texts: Texts, progress: Progress | None = None, title: str = "read words") -> Iterator[Words]:
    """The words of all texts in blocks of at most 4,096 texts and about 200,000 bytes, which stay in the cache.

    A word is a run of letters, digits and marks after `normalise.normalised` (so case, white space and punctuation do
    not count); a character of a script without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) is a word of its
    own. A null counts as an empty text.
    """
    before = 0
    with (progress or SilentProgress()).task(title, len(texts), "row") as task:
        for part in text_parts(texts):
            filled = part.fill_null("") if part.null_count() else part
            for start, stop in _bounds(filled):
                yield _words(before + start, filled.slice(start, stop - start).to_list())
                task.advance(stop - start)
            before += len(part)


def mixed(values: U64) -> U64:
    """Spread all bits over all bits (the finaliser of SplitMix64; Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _bounds(texts: pl.Series) -> Iterator[tuple[int, int]]:
    sizes = texts.str.len_bytes().to_numpy()
    ends = np.cumsum(sizes, dtype=np.int64)
    start = 0
    while start < len(texts):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + _BLOCK_BYTES, side="right"))
        stop = min(max(stop, start + 1), start + BLOCK_TEXTS, len(texts))
        yield start, stop
        start = stop


def _words(start: int, texts: list[str]) -> Words:
    folded = [text.lower() if text.isascii() else normalised(text) for text in texts]
    lengths = np.fromiter(map(len, folded), dtype=np.int64, count=len(folded))
    # One string for the whole block; a line break ends every word, so none goes over two texts.
    joined = "\n".join(folded)
    encoded = joined.encode()
    codes: npt.NDArray[np.integer] = np.frombuffer(encoded, dtype=np.uint8)
    # Equal lengths mean one byte a character: the byte is its own code, and offsets need no translation.
    if is_ascii := len(encoded) == len(joined):
        classes = _classes(128).take(codes, mode="clip")
    else:
        codes = np.frombuffer(joined.encode("utf-32-le"), dtype="<u4")
        classes = _classes(_NUM_CODES).take(codes, mode="clip")
    starts, ends = _word_bounds(classes)
    counts = np.diff(np.searchsorted(starts, np.cumsum(lengths + 1)), prepend=0)
    if not is_ascii:
        starts, ends = _in_bytes(codes, starts, ends)
    return Words(start, _hashes(encoded, starts, ends), counts.astype(np.int64))


def _word_bounds(classes: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
    """Where words start, and one past where they end."""
    is_letter = np.zeros(len(classes) + 2, dtype=bool)
    np.equal(classes, _LETTER, out=is_letter[1:-1])
    # Padded with no letter at both ends, so edges alternate: start, end, start, end.
    edges = np.flatnonzero(is_letter[1:] != is_letter[:-1])
    starts, ends = edges[::2], edges[1::2]
    alone = np.flatnonzero(classes == _ALONE)
    if len(alone):
        starts, ends = np.sort(np.concatenate((starts, alone))), np.sort(np.concatenate((ends, alone + 1)))
    return starts, ends


def _in_bytes(codes: npt.NDArray[np.integer], starts: I64, ends: I64) -> tuple[I64, I64]:
    """Places of characters as places in the UTF-8 bytes of the same text."""
    # UTF-8 takes 2 bytes from U+0080, 3 from U+0800, 4 from U+10000: the bytes beyond one are summed up before a place.
    wide = np.flatnonzero(codes >= 0x80)
    extra = 1 + (codes[wide] >= 0x800).astype(np.int64) + (codes[wide] >= 0x10000)
    before = np.concatenate(([0], np.cumsum(extra)))
    return starts + before[np.searchsorted(wide, starts)], ends + before[np.searchsorted(wide, ends)]


def _hashes(encoded: bytes, starts: I64, ends: I64) -> U64:
    """The hash of the UTF-8 bytes of each word: eight bytes of all words at a time, BLAKE2b of very long ones."""
    padded = encoded + bytes(8)
    # The eight bytes from each place on, as one number: a view that overlaps itself.
    eights = np.ndarray((len(encoded) + 1,), dtype="<u8", buffer=padded, strides=(1,))
    lengths = ends - starts
    hashes = lengths.astype(np.uint64) * np.uint64(_SPREAD)
    for word in np.flatnonzero(lengths > _LONG_BYTES):
        digest = blake2b(encoded[starts[word] : ends[word]], digest_size=8).digest()
        hashes[word] = int.from_bytes(digest, "little")
    some = np.flatnonzero(lengths <= _LONG_BYTES)
    at, left = starts[some], lengths[some]
    while len(some):
        chunk = eights[at] & _MASKS.take(np.minimum(left, 8))  # `take` would copy the whole view first
        hashes[some] = mixed((hashes[some] ^ chunk) * np.uint64(_SPREAD))
        more = np.flatnonzero(left > 8)
        some, at, left = some[more], at[more] + 8, left[more] - 8
    return hashes


@cache
def _classes(count: int) -> npt.NDArray[np.uint8]:
    """What each code is: no part of a word, a letter (or digit or mark), or a word alone. The last one ends no word."""
    categories = map(unicodedata.category, map(chr, range(count)))
    classes = np.fromiter((category[0] in "LNM" for category in categories), dtype=np.uint8, count=count)
    for first, last in _UNSPACED:
        classes[first : last + 1][classes[first : last + 1] == _LETTER] = _ALONE
    classes[-1] = _SPACE
    return classes
