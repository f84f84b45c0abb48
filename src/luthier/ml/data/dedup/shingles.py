"""The three-word shingles of texts, their MinHash signatures, and the bands that bring similar ones together.

A text is the set of its three-word shingles. Signatures (by rensa) of 120 values are cut into 20 bands of 6. What
exceeds the budget of memory is in files (`files.spill`), and arrays are mapped from there.

Sources: Broder, 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
from rensa import RMinHash

from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.files.row_frames import Texts, map_texts, spill_of
from luthier.ml.data.files.spill import Spill, Spool
from luthier.ml.data.text.words import I64, U64, Words, mixed, word_blocks

HASH_BITS: Final = 52
_BLOCK_TEXTS: Final = 20_000
_BLOCK_HASHES: Final = 4_000_000
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


def shingles_of(texts: Texts, progress: Progress | None = None, spill: Spill | None = None) -> Shingles:
    """The set of runs of three words of each text; of one or two words the whole, of a text without words none.

    Words as in `words.word_blocks`. The sets are in files where they exceed the budget of `spill`.
    """
    hashes, sizes = Spool(spill or spill_of(texts), np.uint64), [np.zeros(1, dtype=np.int64)]
    num_done = 0
    with (progress or SilentProgress()).task("shingle texts", len(texts), "row") as task:
        for _, blocks in map_texts(texts, _sets_in, advance=task.advance):
            for block in blocks:
                sizes.append(block.sizes)
                num_done += len(block.sizes)
                hashes.append(block.hashes, num_done / len(texts))
    return Shingles(np.cumsum(np.concatenate(sizes)), hashes.array())


def _sets_in(texts: pl.Series) -> list[Shingles]:
    return list(_shingle_blocks(texts))


def _shingle_blocks(texts: pl.Series) -> Iterator[Shingles]:
    """The sets of all texts, in order, in blocks of 20,000 texts or some 4 million hashes, the last one smaller."""
    parts: list[U64] = []
    sizes = [np.zeros(1, dtype=np.int64)]
    num_texts = num_hashes = 0
    for block in word_blocks(texts):
        hashes, counts = _block(block)
        parts.append(hashes)
        sizes.append(counts)
        num_texts, num_hashes = num_texts + len(counts), num_hashes + len(hashes)
        if num_texts >= _BLOCK_TEXTS or num_hashes >= _BLOCK_HASHES:
            yield Shingles(np.cumsum(np.concatenate(sizes)), np.concatenate(parts))
            parts, sizes, num_texts, num_hashes = [], sizes[:1], 0, 0
    if num_texts:
        yield Shingles(np.cumsum(np.concatenate(sizes)), np.concatenate(parts))


def spans(starts: I64, sizes: I64) -> I64:
    """start, start + 1, ..., start + size - 1 of each span, one behind the other."""
    before = np.cumsum(sizes) - sizes
    found: I64 = np.arange(int(sizes.sum()), dtype=np.int64) + np.repeat(starts - before, sizes)
    return found


def _block(block: Words) -> tuple[U64, I64]:
    words, texts = block.hashes, block.texts
    first, second, third = (np.uint64(weight) for weight in _WEIGHTS)
    # Three words in a row are one shingle only where the first and the last are of one text.
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


F64 = npt.NDArray[np.float64]

_MAX_PAIRS: Final = 2 ** (64 - HASH_BITS)
_MAX_HASHES: Final = 2_000_000


def jaccard(a: str, b: str) -> float:
    """Shared three-word shingles over all of both texts, 0 to 1; 0 where either has no words."""
    made = shingles_of(pl.Series([a, b], dtype=pl.String))
    one = np.array([0], dtype=np.int64)
    return float(jaccards(made, one, made, one + 1)[0])


def jaccards(left: Shingles, of_left: I64, right: Shingles, of_right: I64) -> F64:
    """The similarity of each pair (text of_left[i] of `left`, text of_right[i] of `right`): float64 [number of pairs].

    Cost: a sort of the hashes of each pair, in bounded memory (that of the largest pair).

    Args:
        left: sets that `of_left` refers to.
        of_left: int64 [pairs], positions in `left`.
        right: sets that `of_right` refers to; may be `left` itself.
        of_right: int64 [pairs], positions in `right`.
    """
    found = np.zeros(len(of_left), dtype=np.float64)
    sizes = left.sizes[of_left] + right.sizes[of_right]
    ends = np.cumsum(sizes)
    start = 0
    while start < len(of_left):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + _MAX_HASHES, side="right"))
        # At least one pair, however large; at most as many as the 12 bits above a hash can number.
        stop = min(max(stop, start + 1), start + _MAX_PAIRS, len(of_left))
        part = slice(start, stop)
        shared = _shared(left, of_left[part], right, of_right[part])
        union = sizes[part] - shared
        found[part] = np.divide(shared, union, out=np.zeros(stop - start), where=union > 0)
        start = stop
    return found


def _shared(left: Shingles, of_left: I64, right: Shingles, of_right: I64) -> I64:
    """How many hashes the two texts of each pair share: equal neighbours after one sort of (pair, hash)."""
    keys = np.concatenate((_keys(left, of_left), _keys(right, of_right)))
    keys.sort()
    # A hash occurs at most once in each text, so an equal neighbour is of the other text of the pair.
    twice = keys[1:][keys[1:] == keys[:-1]]
    pairs = (twice >> np.uint64(HASH_BITS)).astype(np.int64)
    return np.bincount(pairs, minlength=len(of_left)).astype(np.int64)


def _keys(shingles: Shingles, positions: I64) -> U64:
    sizes = shingles.sizes[positions]
    pairs = np.repeat(np.arange(len(positions), dtype=np.uint64), sizes)
    return (pairs << np.uint64(HASH_BITS)) | shingles.hashes[spans(shingles.offsets[positions], sizes)]


Signatures = npt.NDArray[np.uint32]
Pairs = tuple[I64, I64]

NUM_VALUES: Final = 120
NUM_BANDS: Final = 20
BAND_VALUES: Final = NUM_VALUES // NUM_BANDS
_SEED: Final = 3
_BLOCK_PAIRS: Final = 16_384
_HOT: Final = 24
_WINDOW: Final = 8
_CROSS_WINDOW: Final = 16
_LOW_BITS: Final = np.uint64(24)
_HIGH_BITS: Final = np.uint64(40)
_SPREAD: Final = 0x9E3779B97F4A7C15


def recall_at(similarity: float) -> float:
    """The probability that two texts of this similarity share a band, and so are compared."""
    return 1 - (1 - similarity**BAND_VALUES) ** NUM_BANDS


def signatures_of(shingles: Shingles, spill: Spill | None = None) -> Signatures:
    """The MinHash signatures: uint32 [number of texts, 120], in a file where they exceed the budget."""
    made, num_texts = Spool(spill or Spill(), np.uint32, NUM_VALUES), len(shingles.sizes)
    for start in range(0, num_texts, _BLOCK_TEXTS):
        # One more than texts: text i is between offsets i and i + 1.
        offsets = shingles.offsets[start : start + _BLOCK_TEXTS + 1]
        hashes = np.ascontiguousarray(shingles.hashes[offsets[0] : offsets[-1]])
        made.append(_signatures(hashes, offsets - offsets[0]), (start + len(offsets) - 1) / num_texts)
    return made.array()


def _signatures(hashes: U64, offsets: I64) -> Signatures:
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), NUM_VALUES, _SEED)
    rows: Signatures = np.asarray(matrix.to_rows(), dtype=np.uint32).reshape(-1, NUM_VALUES)
    return rows


@dataclass(frozen=True, slots=True)
class Bands:
    """What the search keeps of each of n texts.

    Attributes:
        sizes: int64 [n], shingles of the text; 0 for a text without words.
        fingerprints: uint64 [n], equal for equal sets.
        keys: for each band uint64 [n]: 40 bits of the band (texts equal in them form a bucket) above 24 bits of the
            next band (the order within).
    """

    sizes: I64
    fingerprints: U64
    keys: tuple[U64, ...]

    def in_company(self, positions: I64) -> npt.NDArray[np.bool_]:
        """Which of these texts share a bucket with another one of them: bool [number of positions]."""
        found = np.zeros(len(positions), dtype=bool)
        for keys in self.keys:
            buckets = bucket_of(keys[positions])
            order = np.argsort(buckets, kind="stable")
            equal = buckets[order[1:]] == buckets[order[:-1]]
            found[order[1:][equal]] = True
            found[order[:-1][equal]] = True
        return found


def bands_of(texts: Texts, progress: Progress | None = None, spill: Spill | None = None) -> Bands:
    """Size, fingerprint and band keys of each text, in one pass."""
    spill = spill or spill_of(texts)
    sizes, fingerprints = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.uint64)]
    spools = [Spool(spill, np.uint64) for _ in range(NUM_BANDS)]
    num_done = 0
    with (progress or SilentProgress()).task("shingle texts", len(texts), "row") as task:
        for _, blocks in map_texts(texts, _bands_in, advance=task.advance):
            for block in blocks:
                sizes.append(block.sizes)
                fingerprints.append(block.fingerprints)
                num_done += len(block.sizes)
                for spool, keys in zip(spools, block.keys, strict=True):
                    spool.append(keys, num_done / len(texts))
    return Bands(np.concatenate(sizes), np.concatenate(fingerprints), tuple(spool.array() for spool in spools))


def _bands_in(texts: pl.Series) -> list[Bands]:
    made = []
    for block in _shingle_blocks(texts):
        hashes = _band_hashes(_signatures(block.hashes, block.offsets))
        # The last band is ordered within by the first one: the bands form a ring.
        following = [*hashes[1:], hashes[0]]
        keys = tuple(
            (mine >> _LOW_BITS << _LOW_BITS) | (other >> _HIGH_BITS)
            for mine, other in zip(hashes, following, strict=True)
        )
        made.append(Bands(block.sizes, block.fingerprints(), keys))
    return made


def estimates(left: Signatures, of_left: I64, right: Signatures, of_right: I64) -> F64:
    """The share of equal signature values of each pair: an unbiased estimate of its similarity.

    Args:
        left: minHash signatures [rows, values].
        of_left: of each pair the row in `left`, [pairs].
        right: signatures [other rows, values].
        of_right: of each pair the row in `right`, [pairs].

    Returns:
        From 0 to 1, [pairs].
    """
    made = np.empty(len(of_left), dtype=np.float64)
    for start in range(0, len(made), _BLOCK_PAIRS):
        part = slice(start, start + _BLOCK_PAIRS)
        made[part] = (left[of_left[part]] == right[of_right[part]]).mean(axis=1)
    return made


def pairs_within(keys: U64) -> Iterator[Pairs]:
    """The pairs of texts that are equal in one band, each pair once, in a few parts.

    Of a hot bucket (more than 24 texts equal in one band, as templates make them) not all pairs are taken, so that
    the cost stays linear: the bucket is sorted by the next band, and each text is paired with the first one and with
    the 8 that follow it. Texts that are equal in two neighbouring bands so still meet.

    Args:
        keys: uint64 [n], of one band of `Bands`.
    """
    order = np.argsort(keys, kind="stable").astype(np.int64)
    buckets = bucket_of(keys[order])
    # The complement of the first value differs from it, so the first bucket always begins at 0.
    begins = np.flatnonzero(np.diff(buckets, prepend=~buckets[:1]))
    sizes = np.diff(np.append(begins, len(buckets)))
    begins, sizes = begins[sizes > 1], sizes[sizes > 1]
    order = order[spans(begins, sizes)]  # only what is in company
    size, begin = np.repeat(sizes, sizes), np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.arange(len(order)) - begin
    reach = np.where(size > _HOT, _WINDOW, _HOT)
    # All pairs at one distance at a time: whole arrays instead of a loop over buckets.
    for distance in range(1, min(int(sizes.max(initial=0)), _HOT)):
        at = np.flatnonzero((place + distance < size) & (distance <= reach))
        yield order[at], order[at + distance]
    far = np.flatnonzero((size > _HOT) & (place > _WINDOW))
    yield order[begin[far]], order[far]


def pairs_across(wanted: U64, keys: U64) -> Iterator[Pairs]:
    """The pairs (text of the left side, text of the right side) that are equal in one band, in a few parts.

    Of a bucket with more than 32 texts of the right side those 32 are taken that are nearest by the next band.

    Args:
        wanted: uint64 [n], of one band of the left side's `Bands`.
        keys: uint64 [m], of the same band of the right side's.
    """
    order = np.argsort(keys, kind="stable").astype(np.int64)
    keys = keys[order]
    low = np.uint64(2 ** int(_LOW_BITS) - 1)
    begin = np.searchsorted(keys, wanted & ~low, side="left")
    end = np.searchsorted(keys, wanted | low, side="right")
    at = np.searchsorted(keys, wanted, side="left")
    # `at` is where the text itself would be by its next band: the window is taken around it.
    begin = np.maximum(begin, at - _CROSS_WINDOW)
    end = np.minimum(end, begin + 2 * _CROSS_WINDOW)
    for distance in range(int((end - begin).max(initial=0))):
        some = np.flatnonzero(begin + distance < end)
        yield some, order[begin[some] + distance]


def bucket_of(keys: U64) -> U64:
    """The bucket of each key of one band: texts of one bucket are equal in the band."""
    return keys >> _LOW_BITS


def _band_hashes(signatures: Signatures) -> list[U64]:
    """For each band uint64 [n], equal for texts that are equal in it."""
    found = []
    for band in range(NUM_BANDS):
        made = np.zeros(len(signatures), dtype=np.uint64)
        for column in range(band * BAND_VALUES, (band + 1) * BAND_VALUES):
            # uint64 arithmetic wraps around, which is what a hash needs.
            made = mixed((made + signatures[:, column]) * np.uint64(_SPREAD))
        found.append(made)
    return found
