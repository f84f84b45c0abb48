"""The Jaccard similarity of shingle sets, exactly: shared shingles over all shingles of both texts."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.ml.data.dedup.shingles import HASH_BITS, Shingles, shingles_of, spans
from luthier.ml.data.text.words import I64, U64

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
    twice = keys[1:][keys[1:] == keys[:-1]]
    pairs = (twice >> np.uint64(HASH_BITS)).astype(np.int64)
    return np.bincount(pairs, minlength=len(of_left)).astype(np.int64)


def _keys(shingles: Shingles, positions: I64) -> U64:
    sizes = shingles.sizes[positions]
    pairs = np.repeat(np.arange(len(positions), dtype=np.uint64), sizes)
    return (pairs << np.uint64(HASH_BITS)) | shingles.hashes[spans(shingles.offsets[positions], sizes)]
