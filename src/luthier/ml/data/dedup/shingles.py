"""Texts as sets of three-word shingles: what near-duplicates are measured by (Broder, On the resemblance, 1997)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from luthier.core.ports import Progress
from luthier.ml.data.text.words import I64, U64, Words, mixed, word_blocks

HASH_BITS: Final = 52
_BLOCK_TEXTS: Final = 20_000
_WEIGHTS: Final = (0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB)


@dataclass(frozen=True, slots=True)
class Shingles:
    """The shingle sets of n texts, one behind the other.

    Two different shingles of two texts of 80 words share a hash in about one of 10^12 pairs of texts.

    Attributes:
        offsets: int64 [n + 1], where each text's hashes begin; the last one is the number of hashes.
        hashes: uint64 [offsets[n]], 52 bits used, ascending and unique within a text.
    """

    offsets: I64
    hashes: U64

    @property
    def sizes(self) -> I64:
        """How many different shingles each text has; 0 for a text without words."""
        return np.diff(self.offsets)

    def take(self, positions: I64) -> Shingles:
        """The sets of some of the texts, in the order of `positions`."""
        sizes = self.sizes[positions]
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        return Shingles(offsets, self.hashes[spans(self.offsets[positions], sizes)])

    def fingerprints(self) -> U64:
        """One uint64 a text that is equal for equal sets (and else differs, except for one in 2^64)."""
        made = np.zeros(len(self.sizes), dtype=np.uint64)
        for start in range(0, len(made), _BLOCK_TEXTS):  # in blocks, since the sums need as much memory as the hashes
            offsets = self.offsets[start : start + _BLOCK_TEXTS + 1]
            block = self.hashes[offsets[0] : offsets[-1]]
            squares = block * (block | np.uint64(1))  # 64 bits of 52
            sums = np.concatenate((np.zeros(1, dtype=np.uint64), np.cumsum(squares, dtype=np.uint64)))
            # The sum over a set does not depend on order; prefix sums give it for every text, also where they wrap
            # around.
            at = offsets - offsets[0]
            made[start : start + len(at) - 1] = mixed(sums[at[1:]] - sums[at[:-1]] + np.diff(at).astype(np.uint64))
        return made


def shingles_of(texts: pl.Series, progress: Progress | None = None) -> Shingles:
    """The set of runs of three words of each text; of one or two words the whole, of a text without words none.

    Words as in `words.word_blocks`.
    """
    parts, sizes = [], [np.zeros(1, dtype=np.int64)]
    for block in word_blocks(texts, progress, "shingle texts"):
        hashes, counts = _block(block)
        parts.append(hashes)
        sizes.append(counts)
    hashes = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
    return Shingles(np.cumsum(np.concatenate(sizes)), hashes)


def spans(starts: I64, sizes: I64) -> I64:
    """start, start + 1, ..., start + size - 1 of each span, one behind the other."""
    before = np.cumsum(sizes) - sizes
    found: I64 = np.arange(int(sizes.sum()), dtype=np.int64) + np.repeat(starts - before, sizes)
    return found


def _block(block: Words) -> tuple[U64, I64]:
    words, texts = block.hashes, block.texts
    first, second, third = (np.uint64(weight) for weight in _WEIGHTS)
    whole = np.flatnonzero(texts[2:] == texts[:-2])
    long = words[whole] * first + words[whole + 1] * second + words[whole + 2] * third

    begins = np.cumsum(block.counts) - block.counts
    one, two = begins[block.counts == 1], begins[block.counts == 2]
    hashes = np.concatenate((long, words[one] * first, words[two] * first + words[two + 1] * second))
    of_text = np.concatenate((texts[whole], texts[one], texts[two])).astype(np.uint64)

    # The number of the text above 52 bits of hash: one sort orders both.
    keys = (of_text << np.uint64(HASH_BITS)) | (mixed(hashes) >> np.uint64(64 - HASH_BITS))
    keys.sort()
    # Equal neighbours are repeats of one shingle in one text; the complement keeps the first key.
    keys = keys[np.diff(keys, prepend=~keys[:1]) != 0]
    counts = np.bincount((keys >> np.uint64(HASH_BITS)).astype(np.int64), minlength=len(block.counts))
    return keys & np.uint64(2**HASH_BITS - 1), counts.astype(np.int64)
