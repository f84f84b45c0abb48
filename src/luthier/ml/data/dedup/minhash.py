"""MinHash signatures by rensa, and which texts may be near-duplicates of which by their bands (LSH).

Signatures of 120 values are cut into 20 bands of 6; two texts are compared where at least one band is equal. Of texts
of similarity s that happens with probability 1 - (1 - s^6)^20: 0.998 at 0.8, 0.985 at 0.75, 0.27 at 0.5 (Broder,
1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from rensa import RMinHash, RMinHashLSH

from luthier.ml.data.dedup.jaccard import F64
from luthier.ml.data.dedup.shingles import Shingles, spans
from luthier.ml.data.text.words import I64, U64, mixed

Signatures = npt.NDArray[np.uint32]
Pairs = tuple[I64, I64]

NUM_VALUES: Final = 120
NUM_BANDS: Final = 20
BAND_VALUES: Final = NUM_VALUES // NUM_BANDS
_SEED: Final = 3
_BLOCK_TEXTS: Final = 20_000
_BLOCK_PAIRS: Final = 16_384
_HOT: Final = 24
_WINDOW: Final = 8
_CROSS_WINDOW: Final = 16
_BUCKET_BITS: Final = 40
_SPREAD: Final = 0x9E3779B97F4A7C15


def recall_at(similarity: float) -> float:
    """The probability that two texts of this similarity share a band, and so are compared."""
    return 1 - (1 - similarity**BAND_VALUES) ** NUM_BANDS


def signatures_of(shingles: Shingles) -> Signatures:
    """The MinHash signatures: uint32 [number of texts, 120]."""
    made = np.empty((len(shingles.sizes), NUM_VALUES), dtype=np.uint32)
    for start in range(0, len(made), _BLOCK_TEXTS):
        # One more than texts: text i lies between offsets i and i + 1.
        offsets = shingles.offsets[start : start + _BLOCK_TEXTS + 1]
        hashes = shingles.hashes[offsets[0] : offsets[-1]]
        made[start : start + len(offsets) - 1] = _matrix(hashes, offsets - offsets[0]).to_rows()
    return made


def texts_in_company(shingles: Shingles) -> I64:
    """The texts that share at least one band with another one, ascending; only these can be near-duplicates.

    rensa answers this without handing over the signatures, which saves most of the work where duplicates are rare.
    """
    if len(shingles.sizes) < 2:
        return np.zeros(0, dtype=np.int64)
    search = RMinHashLSH(0.8, NUM_VALUES, NUM_BANDS)
    flags = search.query_duplicate_flags_matrix_one_shot(_matrix(shingles.hashes, shingles.offsets))
    return np.flatnonzero(np.array(flags, dtype=bool) & (shingles.sizes > 0))


def texts_in_company_of(shingles: Shingles, others: Shingles) -> I64:
    """The texts that share a band with one of `others`, or with another text of their own side; ascending."""
    if not len(shingles.sizes) or not len(others.sizes):
        return np.zeros(0, dtype=np.int64)
    search = RMinHashLSH(0.8, NUM_VALUES, NUM_BANDS)
    search.insert_matrix(_matrix(others.hashes, others.offsets), 0)
    flags = search.query_duplicate_flags_matrix_one_shot(_matrix(shingles.hashes, shingles.offsets))
    return np.flatnonzero(np.array(flags, dtype=bool) & (shingles.sizes > 0))


def estimates(left: Signatures, of_left: I64, right: Signatures, of_right: I64) -> F64:
    """The share of equal signature values of each pair: an unbiased estimate of its similarity."""
    made = np.empty(len(of_left), dtype=np.float64)
    for start in range(0, len(made), _BLOCK_PAIRS):
        part = slice(start, start + _BLOCK_PAIRS)
        made[part] = (left[of_left[part]] == right[of_right[part]]).mean(axis=1)
    return made


def pairs_within(signatures: Signatures, band: int) -> Iterator[Pairs]:
    """The pairs of texts that are equal in this band, each pair once, in a few parts.

    Of a hot bucket (more than 24 texts equal in one band, as templates make them) not all pairs are taken, so that
    the cost stays linear: the bucket is sorted by the next band, and each text is paired with the first one and with
    the 8 that follow it. Texts that are equal in two neighbouring bands so still meet.
    """
    keys = _bucket_keys(signatures, band)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    buckets = keys[order] >> np.uint64(64 - _BUCKET_BITS)
    # The complement of the first value differs from it, so the first bucket begins at 0, whatever it is.
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


def pairs_across(left: Signatures, right: Signatures, band: int) -> Iterator[Pairs]:
    """The pairs (text of `left`, text of `right`) that are equal in this band, in a few parts.

    Of a bucket with more than 32 texts of `right` those 32 are taken that are nearest by the next band.
    """
    wanted, keys = _bucket_keys(left, band), _bucket_keys(right, band)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    keys = keys[order]
    low = np.uint64(2 ** (64 - _BUCKET_BITS) - 1)
    begin = np.searchsorted(keys, wanted & ~low, side="left")
    end = np.searchsorted(keys, wanted | low, side="right")
    at = np.searchsorted(keys, wanted, side="left")
    # `at` is where the text itself would lie by its next band: the window is taken around it.
    begin = np.maximum(begin, at - _CROSS_WINDOW)
    end = np.minimum(end, begin + 2 * _CROSS_WINDOW)
    for distance in range(int((end - begin).max(initial=0))):
        some = np.flatnonzero(begin + distance < end)
        yield some, order[begin[some] + distance]


def _matrix(hashes: U64, offsets: I64) -> RMinHash:
    return RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), NUM_VALUES, _SEED)


def _bucket_keys(signatures: Signatures, band: int) -> U64:
    """40 bits of the band (texts equal in them form a bucket) above 24 bits of the next band (the order within)."""
    low_bits = np.uint64(64 - _BUCKET_BITS)
    here, following = _band_hash(signatures, band), _band_hash(signatures, (band + 1) % NUM_BANDS)
    return (here >> low_bits << low_bits) | (following >> np.uint64(_BUCKET_BITS))


def _band_hash(signatures: Signatures, band: int) -> U64:
    made = np.zeros(len(signatures), dtype=np.uint64)
    for column in range(band * BAND_VALUES, (band + 1) * BAND_VALUES):
        # uint64 arithmetic wraps around, which is what a hash wants.
        made = mixed((made + signatures[:, column]) * np.uint64(_SPREAD))
    return made
