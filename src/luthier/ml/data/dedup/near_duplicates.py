"""Near-duplicate texts: candidates by MinHash and banding (LSH), each pair then checked by exact Jaccard similarity.

texts -> shingle sets -> equal sets fall together -> texts that share a band -> estimate -> exact similarity -> clusters

A text is the set of its three-word shingles. Signatures (by rensa) of 120 values are cut into 20 bands of 6; two texts
are compared where at least one band is equal. Of texts of similarity s that happens with probability
1 - (1 - s^6)^20: 0.998 at 0.8, 0.985 at 0.75, 0.27 at 0.5 (`recall_at`). Precision is 1 by construction, since every
pair is checked. Cost grows linearly with the number of texts; half a million reviews of 80 words need well under 2 GiB
beyond the texts.

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
from rensa import RMinHash, RMinHashLSH
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from luthier.core.errors import RequestError
from luthier.core.ports import Progress, SilentProgress
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
