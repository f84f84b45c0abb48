"""Texts that say nearly the same: found by MinHash bands, and each pair then checked exactly.

texts -> shingle sets -> equal sets fall together -> texts that share a band -> estimate -> exact similarity -> clusters

Cost grows linearly with the number of texts; half a million reviews of 80 words need well under 2 GiB beyond the
texts. Precision is 1 by construction (every pair is checked); recall is that of the bands (`minhash.recall_at`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from luthier.core.errors import RequestError
from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.dedup.jaccard import F64, jaccards
from luthier.ml.data.dedup.minhash import (
    NUM_BANDS,
    NUM_VALUES,
    Pairs,
    Signatures,
    estimates,
    pairs_across,
    pairs_within,
    signatures_of,
    texts_in_company,
    texts_in_company_of,
)
from luthier.ml.data.dedup.shingles import Shingles, shingles_of
from luthier.ml.data.text.words import I64

_SIGMAS: Final = 4.0
_MAX_ROUNDS: Final = 100


@dataclass(frozen=True, slots=True)
class NearMatches:
    """Texts with a near-duplicate on the other side: text `positions[i]` and `others[i]` have `jaccards[i]`.

    Attributes:
        positions: int64 [m], ascending and unique.
        others: int64 [m], the most similar text found (the first of equals).
        jaccards: float64 [m], the similarity of each pair, 0 to 1.
    """

    positions: I64
    others: I64
    jaccards: F64


@dataclass(frozen=True, slots=True)
class NearClusters:
    """Clusters of near-duplicates, and which texts to keep of them.

    Attributes:
        groups: int64 [n], for each text the first text of its cluster (its own position where it is alone).
        kept: int64 [n], for each text a kept text that it is a near-duplicate of (its own position where it is kept
            itself), so that no text is dropped for the sake of one that is dropped too.
        similarities: float64 [n] to the kept text.
        num_unsettled: texts of long chains that are kept since 100 kept texts of their cluster were not near to them.
    """

    groups: I64
    kept: I64
    similarities: F64
    num_unsettled: int = 0


def near_duplicate_groups(texts: pl.Series, *, threshold: float = 0.8, progress: Progress | None = None) -> I64:
    """For each text the position of the first text of its cluster; its own position where it has no near-duplicate.

    Clusters are the connected components of the pairs whose Jaccard similarity over three-word shingles is at least
    `threshold` (0.5 to 1; the bands are made for 0.8 and above). A text without words is no near-duplicate of any.

    Args:
        texts: strings [n].
        threshold: least similarity.
        progress: shows the search.

    Returns:
        int64 [n].

    Raises:
        RequestError: the threshold is not between 0.5 and 1.
    """
    return _groups(shingles_of(texts, progress), threshold, progress or SilentProgress())


def near_clusters(texts: pl.Series, *, threshold: float = 0.8, progress: Progress | None = None) -> NearClusters:
    """The clusters of `near_duplicate_groups`, and for each text which kept text it is a near-duplicate of.

    In the order of the texts a text is kept where it is near to no kept one of its cluster.

    Raises:
        RequestError: the threshold is not between 0.5 and 1.
    """
    shingles = shingles_of(texts, progress)
    groups = _groups(shingles, threshold, progress or SilentProgress())
    kept = np.arange(len(groups))
    similarities = np.ones(len(groups), dtype=np.float64)
    waiting = np.flatnonzero(groups != kept)
    # A cluster is a chain: its ends may be far apart. So each text is compared with kept texts, not with the chain.
    leaders = groups.copy()
    for _ in range(_MAX_ROUNDS):
        if not len(waiting):
            break
        found = jaccards(shingles, waiting, shingles, leaders[waiting])
        near = found >= threshold
        kept[waiting[near]] = leaders[waiting[near]]
        similarities[waiting[near]] = found[near]
        waiting = waiting[~near]
        # The first text of each cluster that is still waiting stays, and is what the others are compared with next.
        _, first, of_cluster = np.unique(groups[waiting], return_index=True, return_inverse=True)
        leaders[waiting] = waiting[first][of_cluster]
        waiting = waiting[leaders[waiting] != waiting]
    return NearClusters(groups, kept, similarities, num_unsettled=len(waiting))


def near_matches(
    texts: pl.Series, others: pl.Series, *, threshold: float = 0.8, progress: Progress | None = None
) -> NearMatches:
    """The texts that have a near-duplicate among `others`, each with the most similar one found.

    Raises:
        RequestError: the threshold is not between 0.5 and 1.
    """
    _check(threshold)
    left, right = shingles_of(texts, progress), shingles_of(others, progress)
    of_left = texts_in_company_of(left, right)
    of_right = np.flatnonzero(right.sizes > 0)
    left_signatures, right_signatures = signatures_of(left.take(of_left)), signatures_of(right.take(of_right))
    found: list[tuple[I64, I64, F64]] = []
    with (progress or SilentProgress()).task("compare texts", NUM_BANDS, "band") as task:
        for band in range(NUM_BANDS):
            for pairs in pairs_across(left_signatures, right_signatures, band):
                a, b = _likely(pairs, left_signatures, right_signatures, threshold)
                similarity = jaccards(left, of_left[a], right, of_right[b])
                near = similarity >= threshold
                found.append((of_left[a[near]], of_right[b[near]], similarity[near]))
            task.advance()
    empty = np.zeros(0, dtype=np.int64)
    columns = list(zip(*found, strict=True)) or [(empty,), (empty,), (empty.astype(np.float64),)]
    positions, matched, similarity = (np.concatenate(column) for column in columns)
    # By text, then by falling similarity, then by position: the first row of each text is its best match.
    order = np.lexsort((matched, -similarity, positions))
    positions, matched, similarity = positions[order], matched[order], similarity[order]
    best = np.flatnonzero(np.diff(positions, prepend=-1))
    return NearMatches(positions[best], matched[best], similarity[best])


def _groups(shingles: Shingles, threshold: float, progress: Progress) -> I64:
    _check(threshold)
    num_texts = len(shingles.sizes)
    # Equal sets fall together first, in the order of their fingerprint: what follows does not depend on file order.
    worded = np.flatnonzero(shingles.sizes > 0)
    _, first, of_set = np.unique(shingles.fingerprints()[worded], return_index=True, return_inverse=True)
    groups = np.arange(num_texts)
    if not len(worded):
        return groups
    labels = _clusters(shingles.take(worded[first]), threshold, progress)[of_set]
    _, first, of_label = np.unique(labels, return_index=True, return_inverse=True)
    groups[worded] = worded[first][of_label]
    return groups


def _clusters(shingles: Shingles, threshold: float, progress: Progress) -> I64:
    """A label a text, equal for texts of one cluster."""
    some = texts_in_company(shingles)
    labels = np.arange(len(shingles.sizes))
    if not len(some):
        return labels
    shingles = shingles.take(some)
    signatures = signatures_of(shingles)
    found = np.arange(len(some))
    with progress.task("compare texts", NUM_BANDS, "band") as task:
        for band in range(NUM_BANDS):
            for left, right in pairs_within(signatures, band):
                apart = found[left] != found[right]  # what is in one cluster already needs no comparison
                a, b = _likely((left[apart], right[apart]), signatures, signatures, threshold)
                near = jaccards(shingles, a, shingles, b) >= threshold
                found = _joined(found, a[near], b[near])
            task.advance()
    # From positions among `some` back to positions among all texts.
    labels[some] = some[found]
    return labels


def _likely(pairs: Pairs, left: Signatures, right: Signatures, threshold: float) -> Pairs:
    """The pairs whose estimate is not more than four standard errors below the threshold."""
    # Binomial standard error of the share of equal values; the exact check that follows costs far more than this one.
    lowest = threshold - _SIGMAS * float(np.sqrt(threshold * (1 - threshold) / NUM_VALUES))
    likely = estimates(left, pairs[0], right, pairs[1]) >= lowest
    return pairs[0][likely], pairs[1][likely]


def _joined(labels: I64, left: I64, right: I64) -> I64:
    """The labels after the clusters of each pair have become one; a label is the first text of its cluster."""
    if not len(left):
        return labels
    involved, ends = np.unique(np.concatenate((labels[left], labels[right])), return_inverse=True)
    edges = coo_array(
        (np.ones(len(left), dtype=bool), (ends[: len(left)], ends[len(left) :])), shape=(len(involved),) * 2
    )
    _, components = connected_components(edges, directed=False)
    _, first = np.unique(components, return_index=True)
    moved = np.arange(len(labels))
    moved[involved] = involved[first[components]]
    joined: I64 = moved[labels]
    return joined


def _check(threshold: float) -> None:
    if not 0.5 <= threshold <= 1:
        raise RequestError(
            f"a near-duplicate threshold of {threshold}",
            expected="a Jaccard similarity from 0.5 to 1 (the search is made for 0.8 and above)",
            do="take 0.8, the usual value",
        )
