"""Near-duplicate texts: candidates by MinHash and banding (LSH), each pair then checked by exact Jaccard similarity.

texts -> shingle sets -> equal sets fall together -> texts that share a band -> estimate -> exact similarity -> clusters

A text is the set of its three-word shingles. Signatures (by rensa) of 120 values are cut into 20 bands of 6; two texts
are compared where at least one band is equal. Of texts of similarity s that happens with probability
1 - (1 - s^6)^20: 0.998 at 0.8, 0.985 at 0.75, 0.27 at 0.5 (`recall_at`). Precision is 1 by construction, since every
pair is checked. Cost grows linearly with the number of texts.

Of all texts only 176 bytes are kept: the size of the set, a fingerprint, and a key for each band. Sets and signatures
are kept of the texts that share a band with another one. Beyond the budget of memory (`files.spill`) keys, sets and
signatures are in files; one band at a time is in memory.

Sources: Broder, 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from luthier.core.errors import RequestError
from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.dedup.shingles import (
    F64,
    NUM_BANDS,
    NUM_VALUES,
    Bands,
    Pairs,
    Shingles,
    Signatures,
    bands_of,
    bucket_of,
    estimates,
    jaccards,
    pairs_across,
    pairs_within,
    shingles_of,
    signatures_of,
)
from luthier.ml.data.files.row_frames import Texts, spill_of, where_texts
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.text.words import I64

_SIGMAS: Final = 4.0
_MAX_ROUNDS: Final = 100
"""Comparisons with kept texts, for each text of a cluster on average."""
_LEAST_COMPARISONS: Final = 1_000_000
"""However few texts there are: a chain of 2,000 takes as many."""


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
        num_unsettled: texts of very long chains that are kept without having been compared with all kept texts of their
            cluster.
    """

    groups: I64
    kept: I64
    similarities: F64
    num_unsettled: int = 0


def near_duplicate_groups(texts: Texts, *, threshold: float = 0.8, progress: Progress | None = None) -> I64:
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
    return _search(texts, threshold, progress or SilentProgress()).groups


def near_clusters(texts: Texts, *, threshold: float = 0.8, progress: Progress | None = None) -> NearClusters:
    """The clusters of `near_duplicate_groups`, and for each text which kept text it is a near-duplicate of.

    In the order of the texts a text is kept where it is near to no kept one of its cluster.

    Raises:
        RequestError: the threshold is not between 0.5 and 1.
    """
    search = _search(texts, threshold, progress or SilentProgress())
    groups = search.groups
    kept = np.arange(len(groups))
    similarities = np.ones(len(groups), dtype=np.float64)
    waiting = np.flatnonzero(groups != kept)
    # A cluster is a chain: its ends may be far apart. So each text is compared with kept texts, not with the chain.
    leaders = groups.copy()
    num_left = max(_MAX_ROUNDS * len(waiting), _LEAST_COMPARISONS)
    while len(waiting) and num_left > 0:
        num_left -= len(waiting)
        found = search.similarities(waiting, leaders[waiting])
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
    texts: Texts, others: Texts, *, threshold: float = 0.8, progress: Progress | None = None
) -> NearMatches:
    """The texts that have a near-duplicate among `others`, each with the most similar one found.

    Raises:
        RequestError: the threshold is not between 0.5 and 1.
    """
    _check(threshold)
    spill = spill_of(texts)
    left, right = bands_of(texts, progress, spill), bands_of(others, progress, spill)
    # The sets of texts without words are all equal, and no near-duplicates.
    of_left, of_right = np.flatnonzero(left.sizes > 0), np.flatnonzero(right.sizes > 0)
    meets = np.zeros(len(of_left), dtype=bool)
    for mine, theirs in zip(left.keys, right.keys, strict=True):
        meets |= np.isin(bucket_of(mine[of_left]), bucket_of(theirs[of_right]))
    of_left = of_left[meets]
    left_sets, right_sets = _sets_of(texts, of_left, spill, progress), _sets_of(others, of_right, spill, progress)
    left_signatures, right_signatures = signatures_of(left_sets, spill), signatures_of(right_sets, spill)
    found: list[tuple[I64, I64, F64]] = []
    with (progress or SilentProgress()).task("compare texts", NUM_BANDS, "band") as task:
        for band in range(NUM_BANDS):
            for pairs in pairs_across(left.keys[band][of_left], right.keys[band][of_right]):
                likely = _likely(pairs, left_signatures, right_signatures, threshold)
                a, b = pairs[0][likely], pairs[1][likely]
                similarity = jaccards(left_sets, a, right_sets, b)
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


@dataclass(frozen=True, slots=True)
class _Search:
    """Clusters, and the sets used to compare their texts.

    Attributes:
        groups: int64 [n], as of `NearClusters`.
        sets: int64 [n], for each text the first text with an equal set; its own position where it has no words.
        compared: int64 [m], texts whose sets are kept, ascending: those of `sets` that share a band with another one.
        shingles: their sets.
    """

    groups: I64
    sets: I64
    compared: I64
    shingles: Shingles

    def similarities(self, ones: I64, others: I64) -> F64:
        """The similarity of pairs of texts of one cluster."""
        found = np.ones(len(ones), dtype=np.float64)
        one, other = self.sets[ones], self.sets[others]
        differ = one != other  # texts of equal sets are in no need of a comparison, and may not be among the compared
        left, right = np.searchsorted(self.compared, one[differ]), np.searchsorted(self.compared, other[differ])
        found[differ] = jaccards(self.shingles, left, self.shingles, right)
        return found


def _search(texts: Texts, threshold: float, progress: Progress) -> _Search:
    _check(threshold)
    spill = spill_of(texts)
    bands = bands_of(texts, progress, spill)
    sets = np.arange(len(bands.sizes))
    # Equal sets fall together first, in the order of their fingerprint: what follows does not depend on file order.
    worded = np.flatnonzero(bands.sizes > 0)
    _, first, of_set = np.unique(bands.fingerprints[worded], return_index=True, return_inverse=True)
    sets[worded] = worded[first][of_set]
    some = worded[first]
    some = some[bands.in_company(some)]
    compared = np.sort(some)
    shingles = _sets_of(texts, compared, spill, progress)
    labels = sets.copy()
    # Labels are numbers of `some`, so that clusters do not depend on the order of the file.
    at = np.searchsorted(compared, some)
    labels[some] = some[_clusters(bands, some, at, shingles, threshold, progress, spill)]
    groups = labels[sets]
    # A cluster goes by its first text in the file.
    _, first, of_label = np.unique(groups, return_index=True, return_inverse=True)
    return _Search(first[of_label], sets, compared, shingles)


def _sets_of(texts: Texts, positions: I64, spill: Spill, progress: Progress | None) -> Shingles:
    """The sets of some texts; positions ascend."""
    kept = np.zeros(len(texts), dtype=bool)
    kept[positions] = True
    return shingles_of(where_texts(texts, kept), progress, spill)


def _clusters(
    bands: Bands, some: I64, at: I64, shingles: Shingles, threshold: float, progress: Progress, spill: Spill
) -> I64:
    """A label for each of `some`, equal for texts of one cluster: the first of them among `some`.

    Args:
        bands: of all texts.
        some: int64 [m], the texts to compare.
        at: int64 [m], where the set of each is in `shingles`.
        shingles: their sets.
        threshold: least similarity.
        progress: shows the bands.
        spill: for the signatures.
    """
    found = np.arange(len(some))
    if not len(some):
        return found
    signatures = signatures_of(shingles, spill)
    with progress.task("compare texts", NUM_BANDS, "band") as task:
        for keys in bands.keys:
            for left, right in pairs_within(keys[some]):
                apart = found[left] != found[right]  # what is in one cluster already needs no comparison
                left, right = left[apart], right[apart]
                likely = _likely((at[left], at[right]), signatures, signatures, threshold)
                left, right = left[likely], right[likely]
                near = jaccards(shingles, at[left], shingles, at[right]) >= threshold
                found = _joined(found, left[near], right[near])
            task.advance()
    return found


def _likely(pairs: Pairs, left: Signatures, right: Signatures, threshold: float) -> npt.NDArray[np.bool_]:
    """Which pairs have an estimate that is not more than four standard errors below the threshold."""
    # Binomial standard error of the share of equal values; the exact check that follows costs far more than this one.
    lowest = threshold - _SIGMAS * float(np.sqrt(threshold * (1 - threshold) / NUM_VALUES))
    return estimates(left, pairs[0], right, pairs[1]) >= lowest


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
