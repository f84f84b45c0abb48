"""Texts as points in the plane, near where they use the same words: a look at what a file holds, no measurement.

TF-IDF over hashed words and character trigrams (Salton and Buckley, "Term-weighting approaches in automatic text
retrieval", 1988; Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009), then the two first
principal components (centred truncated SVD). No model is loaded.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, svds

from luthier.ml.data.files.row_frames import Texts, take_texts, text_parts

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_NUM_FEATURES: Final = 2**18
_MAX_CHARACTERS: Final = 1_000
_PREFIX_SHARE: Final = 0.9
_MIN_PREFIX: Final = 8
_NUM_REGIONS: Final = 6
_MIN_REGION_ROWS: Final = 5
_SMALL: Final = 500
_FEW_FEATURES: Final = 3  # svds needs more columns than components
_WORD: Final = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the map and its characteristic words, the most distinctive one first.

    Attributes:
        x: centre, in the units of `PromptMap.xy`.
        y: centre.
        num_points: points in it.
        words: at most two.
    """

    x: float
    y: float
    num_points: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptMap:
    """Where texts are.

    Attributes:
        positions: int64 [n], indices into the texts given, ascending; all of them, or a sample.
        xy: float64 [n, 2], one point for each, centred on 0.
        explained_share: the part of the variance that two dimensions keep, 0 to 1.
        num_texts: how many there were.
        prefix: what nearly all texts begin with and was left out; empty where they share no beginning.
        regions: the labelled parts of the map.
        members: int64 [n], index into `regions` of each point's region; -1 for a point of a part that no words set
            apart.
    """

    positions: Integers
    xy: Floats
    explained_share: float
    num_texts: int
    prefix: str
    regions: tuple[Region, ...]
    members: Integers


def prompt_map(texts: Texts, *, max_points: int = 3_000, seed: int = 0) -> PromptMap:
    """Lay texts out in the plane by their words. The same arguments give the same map.

    Nulls are left out. Above `max_points` texts a sample by a hash of (seed, position) is drawn. Of a text the first
    1,000 characters after the shared beginning count.
    """
    is_text = [np.zeros(0, dtype=bool), *(part.is_not_null().to_numpy() for part in text_parts(texts))]
    positions = np.flatnonzero(np.concatenate(is_text)).astype(np.int64)
    num_texts = len(positions)
    if num_texts > max_points:
        order = np.argsort(_mixed(positions, seed), kind="stable")
        positions = np.sort(positions[order[:max_points]])
    # Four times the length: the shared beginning is cut off these before the first 1,000 characters are taken.
    heads = take_texts(texts, positions).str.slice(0, 4 * _MAX_CHARACTERS).to_list()
    prefix = shared_prefix(heads)
    cut = [text[len(prefix) if text.startswith(prefix) else 0 :][:_MAX_CHARACTERS].casefold() for text in heads]
    words = [_WORD.findall(text) for text in cut]
    xy, share = _project(_tf_idf(words))
    regions, members = _regions(xy, words, seed)
    return PromptMap(positions, xy, share, num_texts, prefix, regions, members)


def shared_prefix(texts: Sequence[str]) -> str:
    """The longest beginning that at least 90% of the texts share, cut at a white space; under 8 characters none."""
    if len(texts) < 2:
        return ""
    in_order = sorted(texts)
    width = max(2, math.ceil(_PREFIX_SHARE * len(in_order)))
    best = ""
    for first, last in zip(in_order, in_order[width - 1 :], strict=False):  # all between two share what these share
        # Sorted texts between two others share at least what those two share, so windows of 90% are enough.
        length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
        found = first[: min(len(first), len(last)) if length is None else length]
        best = max(best, found, key=len)
    whole = best[: max((i + 1 for i, character in enumerate(best) if character.isspace()), default=0)]
    return whole if len(whole) >= _MIN_PREFIX else ""


def _mixed(positions: Integers, seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea, Flood, 2014) of each position."""
    z = positions.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _tf_idf(texts: Sequence[Sequence[str]]) -> csr_array:
    """A line of length 1 a text (0 for a text without words), sublinear in the term frequency."""
    buckets: dict[str, int] = {}
    columns: list[int] = []
    values: list[float] = []
    starts = [0]
    for words in texts:
        counts: Counter[int] = Counter()
        for word in words:
            # "#" distinguishes the trigram of a word from the same three letters as a separate word.
            for part in (word, *(f"#{word[i : i + 3]}" for i in range(max(1, len(word) - 2)))):
                bucket = buckets.get(part)
                if bucket is None:
                    # crc32, not hash(), which Python salts in every process: the map must not change between runs.
                    bucket = buckets[part] = zlib.crc32(part.encode("utf-8", "backslashreplace")) % _NUM_FEATURES
                counts[bucket] += 1
        columns.extend(counts)
        values.extend(1 + math.log(count) for count in counts.values())
        starts.append(len(columns))
    made = csr_array((values, columns, starts), shape=(len(texts), _NUM_FEATURES), dtype=np.float64)
    # Each column occurs once in a row, so counting indices gives the document frequency, [features].
    frequency = np.bincount(made.indices, minlength=_NUM_FEATURES)
    # Smoothed inverse document frequency, as scikit-learn's default.
    made.data *= np.log((1 + len(texts)) / (1 + frequency))[made.indices] + 1
    squares = np.zeros(len(texts))
    np.add.at(squares, np.repeat(np.arange(len(texts)), np.diff(made.indptr)), made.data**2)
    made.data /= np.repeat(np.sqrt(np.maximum(squares, 1e-300)), np.diff(made.indptr))
    return made


def _project(matrix: Any) -> tuple[Floats, float]:
    """The two first principal components of the lines, and the share of the variance that they hold."""
    num = matrix.shape[0]
    xy = np.zeros((num, 2))
    if num < 2:
        return xy, 0.0
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    # Total variance times n without a dense matrix: sum of squares less n times the mean's square.
    total = float((matrix.data**2).sum() - num * (mean @ mean))
    if total < 1e-9 * num:
        return xy, 0.0
    columns = np.unique(matrix.indices)
    if num <= _SMALL or len(columns) <= _FEW_FEATURES:
        # [n, n] Gram matrix, centred on both sides: its eigenvectors are the scores of PCA, fast for few texts.
        gram = (matrix @ matrix.T).toarray()
        gram -= gram.mean(axis=0)
        gram -= gram.mean(axis=1, keepdims=True)
        squares, vectors = np.linalg.eigh(gram)
        # eigh sorts ascending; rounding may leave a tiny negative eigenvalue.
        scores = vectors[:, ::-1][:, :2] * np.sqrt(np.maximum(squares[::-1][:2], 0))
    else:
        start = np.linspace(1, 2, min(num, len(columns)))  # ARPACK would begin at random
        left, singular, _ = svds(_centred(matrix[:, columns], mean[columns]), k=2, v0=start, tol=1e-6)
        # svds does not promise an order of its singular values.
        scores = (left * singular)[:, np.argsort(-singular)]
    xy[:, : scores.shape[1]] = scores
    for axis in range(2):  # the sign of a component is arbitrary: the point farthest out is on the positive side
        if xy[np.argmax(np.abs(np.round(xy[:, axis], 9))), axis] < 0:
            xy[:, axis] *= -1
    return xy, min(1.0, float((xy**2).sum()) / total)


def _centred(matrix: Any, mean: Floats) -> LinearOperator:
    """The matrix without its mean line, which as numbers would no longer be sparse."""
    transposed = matrix.T.tocsr()
    return LinearOperator(
        shape=matrix.shape,
        dtype=np.float64,
        matvec=lambda v: matrix @ v.ravel() - mean @ v.ravel(),
        rmatvec=lambda u: transposed @ u.ravel() - mean * u.sum(),
        matmat=lambda v: matrix @ v - mean @ v,
        rmatmat=lambda u: transposed @ u - np.outer(mean, u.sum(axis=0)),
    )


def _regions(xy: Floats, words: Sequence[Sequence[str]], seed: int) -> tuple[tuple[Region, ...], Integers]:
    """Up to six parts of the map (Lloyd's k-means from farthest points) with their characteristic words.

    And the part of each point, as in `PromptMap.members`.
    """
    members = np.full(len(xy), -1, dtype=np.int64)
    if len(xy) < 4 * _MIN_REGION_ROWS or not np.ptp(xy):
        return (), members
    clusters = _clusters(xy, min(_NUM_REGIONS, len(xy) // (2 * _MIN_REGION_ROWS)), seed)
    found: list[Region] = []
    everywhere = Counter(word for text in words for word in set(text))
    for cluster in np.unique(clusters):
        inside = np.flatnonzero(clusters == cluster)
        if len(inside) < _MIN_REGION_ROWS:
            continue
        here = Counter(word for position in inside.tolist() for word in set(words[position]))
        outside = max(len(xy) - len(inside), 1)
        scores = {
            word: (count / len(inside)) * math.log((count / len(inside) + 0.01) / (rest / outside + 0.01))
            for word, count in here.items()
            if (rest := everywhere[word] - count) >= 0 and _is_distinctive(word) and count / len(inside) >= 0.1
        }
        best = sorted((word for word in scores if scores[word] > 0.05), key=lambda word: (-scores[word], word))[:2]
        if best:
            members[inside] = len(found)
            x, y = xy[inside].mean(axis=0)
            found.append(Region(float(x), float(y), len(inside), tuple(best)))
    return tuple(found), members


def _is_distinctive(word: str) -> bool:
    return not word.isdigit() and (len(word) > 2 or not word.isascii())


def _clusters(xy: Floats, num: int, seed: int) -> Integers:
    scaled = xy / np.maximum(xy.std(axis=0), 1e-12)
    generator = np.random.default_rng(seed)
    centres = scaled[[int(generator.integers(len(xy)))]]
    while len(centres) < num:
        nearest = ((scaled[:, None] - centres) ** 2).sum(axis=2).min(axis=1)
        # Farthest-point start: each next centre is the point that is farthest from all centres so far.
        centres = np.vstack([centres, scaled[np.argmax(nearest)]])
    for _ in range(30):
        members = ((scaled[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        moved = np.array(
            [scaled[members == i].mean(axis=0) if (members == i).any() else centres[i] for i in range(num)]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    found: Integers = members.astype(np.int64)
    return found
