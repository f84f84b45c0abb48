"""Topics of texts without an embedding, and evidence that some word has become more frequent.

Topics are groups of texts that share characteristic words, found once and then kept. Words count by tf-idf in 4,096
hashed places; groups are those of spherical k-means. What is fitted on some texts is a fixed function of any other
text, so that ranks of its values stay fair (drift/evidence.py).

A new subject shows in a few words: hardly any prompt had them, and now a few of a hundred do. For each of 2,048 hashed
places, whether a text has a word there is ranked among the texts before it, and the evidence of drift/evidence.py is
averaged over all places: so it is right at every look, however many words are looked through.

Sources: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009; Salton, Buckley,
"Term-weighting approaches in automatic text retrieval", 1988; Dhillon, Modha, "Concept Decompositions for Large Sparse
Text Data using Clustering", 2001 (spherical k-means); Arthur, Vassilvitskii, "k-means++", 2007.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from luthier.ml.drift.evidence import Floats, Ints, Slots, slots_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NUM_TOPICS: Final = 12
_NUM_PLACES: Final = 4_096
_NUM_ROUNDS: Final = 15
_FEWEST_A_TOPIC: Final = 20
_SEED: Final = 7


@dataclass(frozen=True, slots=True)
class TextWords:
    """The words of texts as hashes, text after text.

    Attributes:
        hashes: uint64, [words].
        counts: words of each text, [texts].
    """

    hashes: NDArray[np.uint64]
    counts: Ints

    @property
    def texts(self) -> Ints:
        """For each word the text that it is in."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def of(self, chosen: Ints) -> TextWords:
        """The words of some of the texts.

        Args:
            chosen: their places, rising.
        """
        return TextWords(self.hashes[np.isin(self.texts, chosen)], self.counts[chosen])


@dataclass(frozen=True, slots=True)
class Topics:
    """Groups of texts.

    Attributes:
        weights: idf of each hashed place, [places].
        centres: Unit vectors, the largest group first, [topics, places].
    """

    weights: Floats
    centres: Floats

    def nearest(self, words: TextWords) -> tuple[Floats, Floats]:
        """The topic of each text, 0 for the largest, and how near it is (cosine); NaN for a text without words."""
        similarities = _vectors(words, self.weights) @ self.centres.T
        is_empty = words.counts == 0
        return (
            np.where(is_empty, np.nan, similarities.argmax(axis=1)),
            np.where(is_empty, np.nan, similarities.max(axis=1)),
        )


def find_topics(words: TextWords, num_topics: int = NUM_TOPICS) -> Topics | None:
    """The topics of some texts, the same ones each time; None where the texts have no words."""
    if not words.hashes.size:
        return None
    places = (words.hashes % np.uint64(_NUM_PLACES)).astype(np.int64)
    pairs = np.unique(words.texts * _NUM_PLACES + places) % _NUM_PLACES
    in_texts = np.bincount(pairs, minlength=_NUM_PLACES)
    # Smoothed idf: a word that no text has stays finite, one that all have keeps weight 1.
    weights: Floats = np.log((1 + len(words.counts)) / (1 + in_texts)) + 1
    vectors = _vectors(words.of(np.flatnonzero(words.counts)), weights)
    num_topics = max(1, min(num_topics, vectors.shape[0] // _FEWEST_A_TOPIC))
    return Topics(weights, _centres(vectors, num_topics))


def _vectors(words: TextWords, weights: Floats) -> csr_array:
    """tf-idf of each text with length 1: [texts, places]."""
    from scipy.sparse import csr_array

    places = (words.hashes % np.uint64(_NUM_PLACES)).astype(np.int64)
    cells, counts = np.unique(words.texts * _NUM_PLACES + places, return_counts=True)
    rows, columns = cells // _NUM_PLACES, cells % _NUM_PLACES
    values = (1 + np.log(counts)) * weights[columns]
    lengths = np.sqrt(np.bincount(rows, weights=values**2, minlength=len(words.counts)))
    return csr_array((values / lengths[rows], (rows, columns)), shape=(len(words.counts), _NUM_PLACES))


def _centres(vectors: csr_array, num_topics: int) -> Floats:
    """Spherical k-means, begun by k-means++ with a fixed seed: [topics, places], the largest first."""
    generator = np.random.default_rng(_SEED)
    centres = vectors[[0]].toarray()
    for _ in range(1, num_topics):
        # k-means++: the next centre is drawn by squared distance; rounding may make a cosine exceed 1.
        far = np.maximum(0.0, 1 - (vectors @ centres.T).max(axis=1)) ** 2
        odds = far / far.sum() if far.sum() > 0 else None
        chosen = generator.choice(vectors.shape[0], p=odds)
        centres = np.concatenate((centres, vectors[[chosen]].toarray()))
    for _ in range(_NUM_ROUNDS):
        topics = (vectors @ centres.T).argmax(axis=1)
        sums = np.stack([np.asarray(vectors[np.flatnonzero(topics == one)].sum(axis=0)) for one in range(num_topics)])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        # A topic that lost all its texts keeps its centre.
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
    sizes = np.bincount((vectors @ centres.T).argmax(axis=1), minlength=num_topics)
    ordered: Floats = centres[np.argsort(-sizes, kind="stable")]
    return ordered


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
        words: the words of each text.
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
        # Counts are stored rather than log-gains: only those of the strongest bucket are needed at the end.
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
