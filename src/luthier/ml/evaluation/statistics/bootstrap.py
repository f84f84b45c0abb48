"""Resampling held-out rows: the draws that all systems and metrics share.

Because every metric is a formula over sums of per-sample statistics, one resample is one weighted sum: a matrix of
counts [resamples, rows] times the statistics [rows, k]. Rows of one source (questions about one document, turns of one
conversation) are drawn together, since they are right or wrong together.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; Koehn, "Statistical Significance
Tests for Machine Translation Evaluation", 2004 (paired, on corpus metrics); Davison and Hinkley, "Bootstrap Methods and
their Application", 1997, section 3.8 (sources drawn whole).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import RequestError

Array = NDArray[np.float64]
Aggregate = Callable[[Array], Array]

NUM_RESAMPLES = 10_000
# Draws held at once: at 8 bytes for the index, the count and its float, about 100 MB.
_BLOCK_DRAWS = 4_000_000


def resampled_sums(
    stats: Array, *, seed: int, num_resamples: int = NUM_RESAMPLES, clusters: Sequence[Hashable] | None = None
) -> Array:
    """Sums of the statistics over bootstrap resamples of the rows: [rows, k] -> [resamples, k].

    Equal seeds and numbers of rows (or equal clusters) give equal draws, whatever k: that is what pairs two calls.

    Args:
        stats: [rows, k].
        seed: of the draws.
        num_resamples: how many resamples.
        clusters: the source of each row; rows of one source are drawn together.

    Raises:
        RequestError: no rows, or not one source a row.
    """
    rows = cluster_sums(stats, clusters)
    num_rows = len(rows)
    generator = np.random.default_rng(seed)
    sums = np.empty((num_resamples, rows.shape[1]))
    # Depends on the number of rows alone, so that equal calls draw in equal blocks.
    block = max(1, _BLOCK_DRAWS // num_rows)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        draws = generator.integers(0, num_rows, size=(size, num_rows))
        # Each resample gets a range of numbers of its own, so that one bincount counts all of them.
        draws += np.arange(size)[:, None] * num_rows
        counts = np.bincount(draws.ravel(), minlength=size * num_rows).reshape(size, num_rows)
        sums[start : start + size] = counts.astype(np.float64) @ rows
    return sums


def cluster_sums(stats: Array, clusters: Sequence[Hashable] | None) -> Array:
    """The statistics of each source, in the order in which they first appear: [rows, k] -> [sources, k].

    Without clusters every row is its own source.

    Raises:
        RequestError: no rows, or not one source a row.
    """
    if len(stats) == 0:
        raise RequestError("0 rows", expected="at least one row to resample", do="judge on some held-out rows")
    if clusters is None:
        return stats
    if len(clusters) != len(stats):
        raise RequestError(
            f"{len(clusters)} sources for {len(stats)} rows", expected="the source of every row", do="name one a row"
        )
    places: dict[Hashable, int] = {}
    of_row = [places.setdefault(source, len(places)) for source in clusters]
    sums = np.zeros((len(places), stats.shape[1]))
    # Unbuffered, unlike sums[of_row] += stats, which adds only one of several rows of a source.
    np.add.at(sums, of_row, stats)
    return sums


def same_rows(stats_a: Array, stats_b: Array) -> None:
    """Refuse statistics of different rows.

    Raises:
        RequestError: different numbers of rows, or of statistics.
    """
    if stats_a.shape != stats_b.shape:
        raise RequestError(
            f"statistics of {len(stats_a)} and {len(stats_b)} rows",
            expected="the same rows for both systems",
            do="judge both systems on the same held-out rows",
        )
