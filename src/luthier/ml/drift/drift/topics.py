"""Topics of texts without an embedding: groups of texts that share telling words, found once and then kept.

Words count by tf-idf in 4,096 hashed places; groups are those of spherical k-means. What is fitted on some texts is a
fixed function of any other text, so that ranks of its values stay fair (drift/ranks.py).

Sources: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009; Salton, Buckley,
"Term-weighting approaches in automatic text retrieval", 1988; Dhillon, Modha, "Concept Decompositions for Large Sparse
Text Data using Clustering", 2001 (spherical k-means); Arthur, Vassilvitskii, "k-means++", 2007.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from luthier.ml.drift.drift.ranks import Floats, Ints

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
