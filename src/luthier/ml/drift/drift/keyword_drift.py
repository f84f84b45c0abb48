"""Evidence that some word has become more frequent, looked for in all words at once.

A new subject shows in a few words: hardly any prompt had them, and now a few of a hundred do. For each of 2,048 hashed
places, whether a text has a word there is ranked among the texts before it (drift/ranks.py), and the evidence of
drift/evidence.py is averaged over all places: so it is right at every look, however many words are looked through.

Sources as in those two files; Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from luthier.ml.drift.drift.ranks import Floats, Ints, Slots, slots_of
from luthier.ml.drift.drift.topics import TextWords

NUM_BUCKETS: Final = 2_048
_WIDTHS: Final = np.array([2.0**-5, 2.0**-8])
_MOVED: Final = np.array([0.04, 0.15])


@dataclass(frozen=True, slots=True)
class WordEvidence:
    """What the words say at the end.

    Attributes:
        hours, log_strength, dropped: as in drift.evidence.Evidence.
        began: the likeliest first hour.
        place: the hashed place of the word that explains most.
    """

    hours: Ints
    log_strength: Floats
    began: int
    place: int
    dropped: float


def hash_buckets(hashes: NDArray[np.uint64]) -> Ints:
    """The hashed place of each word."""
    return (hashes % np.uint64(NUM_BUCKETS)).astype(np.int64)


def word_evidence(words: TextWords, hours: Ints, draws: Floats, slots: Slots = slots_of) -> WordEvidence | None:
    """The evidence after each hour; None where there are no texts.

    Args:
        hours: of each text, never falling.
        draws: in (0, 1), one a text.
        slots: as in drift.ranks.conformal_ranks.
    """
    if not len(hours):
        return None
    # One number for text and bucket: unique removes repeats within a text, and the order is by text.
    pairs = np.unique(words.texts * NUM_BUCKETS + hash_buckets(words.hashes))
    ends = np.searchsorted(pairs, np.arange(len(hours) + 1) * NUM_BUCKETS)
    at, starts = np.unique(hours, return_index=True)
    tails = _Tails()
    strength = np.full((NUM_BUCKETS, len(_WIDTHS), len(_MOVED)), -np.inf)
    log_strength, gains = np.empty(len(at)), []
    strongest, peak = 0, -np.inf
    for turn, (start, stop) in enumerate(zip(starts, [*starts[1:], len(hours)], strict=True)):
        has = np.zeros((stop - start, NUM_BUCKETS), dtype=bool)
        has.ravel()[pairs[ends[start] : ends[stop]] - start * NUM_BUCKETS] = True
        inside = tails.inside(has, draws[start:stop], int(slots(at[turn : turn + 1])[0]))
        # Counts and not log-gains are kept: only those of the strongest bucket are wanted at the end.
        gains.append(inside.astype(np.int32))
        # [buckets, widths, moved], each as in drift.evidence: R_t = (1 + R_(t-1)) L_t.
        strength = np.logaddexp(0.0, strength) + _gain(inside, stop - start)
        log_strength[turn] = np.logaddexp.reduce(strength, axis=None) - np.log(strength.size)
        if log_strength[turn] >= log_strength[: turn + 1].max():
            strongest = int(strength.argmax())
            peak = float(strength.flat[strongest])
    place, width, moved = np.unravel_index(int(strength.argmax()), strength.shape)
    sizes = np.diff([*starts, len(hours)])
    of_best = [_gain(one[place], size)[width, moved] for one, size in zip(gains, sizes, strict=True)]
    began = int(np.cumsum(of_best[::-1])[::-1].argmax())
    dropped = peak - float(strength.flat[strongest])
    return WordEvidence(at, log_strength, int(at[began]), int(place), dropped)


class _Tails:
    """Counts of what came before, by slot: how many texts, and how many with a word at each place."""

    def __init__(self) -> None:
        self._num: dict[int, int] = {}
        self._with: dict[int, Ints] = {}

    def inside(self, has: NDArray[np.bool_], draws: Floats, slot: int) -> Ints:
        """How many ranks of an hour fall into the upper tails: [texts, places] -> [places, widths]."""
        before = self._with.get(slot, np.zeros(NUM_BUCKETS, dtype=np.int64))
        num = self._num.get(slot, 0)
        # Texts with the word before each text: of earlier hours, and of this hour up to but not with itself.
        ones = before + np.cumsum(has, axis=0) - has
        total = (num + np.arange(len(has)))[:, None]
        # Texts without the word come first in the order of ranks, those with it after them.
        below = np.where(has, total - ones, 0)
        equal = np.where(has, ones, total - ones)
        ranks = (below + draws[:, None] * (equal + 1)) / (total + 1)
        self._num[slot], self._with[slot] = num + len(has), before + has.sum(axis=0)
        return np.stack([(ranks >= 1 - width).sum(axis=0) for width in _WIDTHS], axis=1)


def _gain(inside: Ints, total: int) -> Floats:
    """Logarithm of the likelihood ratio of an hour: [..., widths] -> [..., widths, moved]."""
    up, down = np.log(1 - _MOVED + _MOVED / _WIDTHS[:, None]), np.log(1 - _MOVED)
    found: Floats = inside[..., None] * up + (total - inside)[..., None] * down
    return found
