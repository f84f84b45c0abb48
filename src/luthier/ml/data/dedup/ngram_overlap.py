"""Texts that are inside other texts, completely or to a large part: shared runs of 13 words.

The size of the window is that of Brown et al., Language Models are Few-Shot Learners (2020), appendix C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.files.row_frames import Texts, map_texts
from luthier.ml.data.text.words import I64, U64, Words, mixed, word_blocks

Flags = npt.NDArray[np.bool_]

WINDOW_WORDS: Final = 13
COVERED_FRACTION: Final = 0.5
COVERED_RUN_WORDS: Final = 50
MAX_TEXTS: Final = 10
_BASE: Final = 0xD1342543DE82EF95
_MAX_BITS: Final = 27


@dataclass(frozen=True, slots=True)
class NgramOverlap:
    """Which texts share long runs with which covered text of the other side, one line a pair.

    Attributes:
        positions: int64 [m], the text; rows are ordered by text and covered text.
        others: int64 [m], the covered text.
        num_shared: int64 [m], windows of 13 words that both hold.
        num_windows: int64 [m], windows of the covered text that count.
        num_boilerplate: windows of the other side that are in more than 10 texts and so say nothing.
        num_only_boilerplate: texts of the other side with no window but such.
    """

    positions: I64
    others: I64
    num_shared: I64
    num_windows: I64
    num_boilerplate: int
    num_only_boilerplate: int


def ngram_overlap(texts: Texts, others: Texts, *, progress: Progress | None = None) -> NgramOverlap:
    """The texts that hold a good part of one of `others`.

    One of `others` is covered where at least half of its windows of 13 words, or a run of at least 50 words, are in
    `texts`, whether in one of them or cut up over several. Windows in more than 10 of the texts are boilerplate and
    count on neither side of the fraction; a text with boilerplate must share 13 other windows, since the windows at
    the edge of boilerplate contain few of its words. Texts shorter than 13 words cannot be covered.

    Memory: the windows of `others`, and at most some 10 texts a window.
    """
    hashes, owners = _windows_of(others, progress)
    windows, of_window = np.unique(hashes, return_inverse=True)
    held, counts = _hits(texts, windows, progress)
    boilerplate = counts > MAX_TEXTS
    # Boilerplate is known only after all texts were read, so it is left out here and not while reading.
    covered = _covered(len(others), owners, (counts > 0)[of_window], boilerplate[of_window])
    num_windows = np.bincount(owners[~boilerplate[of_window]], minlength=len(others)).astype(np.int64)
    num_all = np.bincount(owners, minlength=len(others))

    is_counted = covered[owners] & ~boilerplate[of_window]
    sought = pl.DataFrame({"window": of_window[is_counted], "other": owners[is_counted]}).unique()
    pairs = held.join(sought, on="window").group_by("text", "other").len("num_shared").sort("text", "other")
    positions, matched = (pairs[name].to_numpy().astype(np.int64) for name in ("text", "other"))
    return NgramOverlap(
        positions=positions,
        others=matched,
        num_shared=pairs["num_shared"].to_numpy().astype(np.int64),
        num_windows=num_windows[matched],
        num_boilerplate=int(boilerplate.sum()),
        num_only_boilerplate=int(((num_all > 0) & (num_windows == 0)).sum()),
    )


def _windows_of(texts: Texts, progress: Progress | None) -> tuple[U64, I64]:
    """The hash of each window, in order, and the text it is in."""
    hashes, owners = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    for block in word_blocks(texts, progress, "read held-out words"):
        made, of_text = _windows(block)
        hashes.append(made)
        owners.append(of_text + block.start)
    return np.concatenate(hashes), np.concatenate(owners)


def _windows(block: Words) -> tuple[U64, I64]:
    words, texts = block.hashes, block.texts
    num = max(0, len(words) - WINDOW_WORDS + 1)
    made = np.zeros(num, dtype=np.uint64)
    for place in range(WINDOW_WORDS):
        # Polynomial hash modulo 2^64 of all windows together: 13 vector steps for any number of words.
        made = made * np.uint64(_BASE) + words[place : place + num]
    # A window counts where its first and last word are of one text.
    within = texts[:num] == texts[len(texts) - num :]
    return mixed(made[within]), texts[:num][within]


def _hits(texts: Texts, windows: U64, progress: Progress | None) -> tuple[pl.DataFrame, I64]:
    """(text, window) of all windows in few texts, and how many texts contain each window."""
    counts = np.zeros(len(windows), dtype=np.int64)
    parts = [pl.DataFrame(schema={"text": pl.Int64, "window": pl.Int64})]
    bits = np.uint64(64 - min(max(16 * len(windows), 1).bit_length() + 1, _MAX_BITS))
    # One look into a small table spares most windows the binary search.
    may_be = np.zeros(2 ** (64 - int(bits)), dtype=bool)
    may_be[windows >> bits] = True
    with (progress or SilentProgress()).task("search long runs", len(texts), "row") as task:
        for start, found in map_texts(texts, _hits_in, windows, may_be, bits, advance=task.advance):
            for owners, at in found:
                # Counts of the blocks so far: boilerplate is dropped early, so that memory stays bounded.
                in_few = counts[at] <= MAX_TEXTS
                counts += np.bincount(at, minlength=len(windows))
                parts.append(pl.DataFrame({"text": owners[in_few] + start, "window": at[in_few]}))
    held = pl.concat(parts)
    return held.filter(pl.Series(counts[held["window"].to_numpy()] <= MAX_TEXTS)), counts


def _hits_in(texts: pl.Series, windows: U64, may_be: Flags, bits: np.uint64) -> list[tuple[I64, I64]]:
    """(text, window) of a part in blocks, each pair once.

    Args:
        texts: the part.
        windows: uint64 [n], ascending.
        may_be: by the first bits of a hash, whether a window begins with them.
        bits: how many of a hash are left out for that.
    """
    made = []
    for block in word_blocks(texts):
        hashes, owners = _windows(block)
        some = np.flatnonzero(may_be[hashes >> bits])
        # The table only excludes windows: what remains is looked up exactly.
        at = np.searchsorted(windows, hashes[some])
        found = np.flatnonzero(windows[np.minimum(at, len(windows) - 1)] == hashes[some]) if len(windows) else some
        pairs = pl.DataFrame({"text": owners[some][found] + block.start, "window": at[found]})
        pairs = pairs.unique(maintain_order=True)
        made.append((pairs["text"].to_numpy(), pairs["window"].to_numpy()))
    return made


def _covered(num_texts: int, owners: I64, is_hit: Flags, is_boilerplate: Flags) -> Flags:
    """For each text of the other side, whether enough of it is in the texts."""
    hit = is_hit & ~is_boilerplate
    num_hits = np.bincount(owners[hit], minlength=num_texts)
    num_boilerplate = np.bincount(owners[is_boilerplate], minlength=num_texts)
    num_counted = np.bincount(owners, minlength=num_texts) - num_boilerplate
    # A run of 13 windows has 25 words, of which a window at the edge of boilerplate may contain one.
    fewest = np.where(num_boilerplate > 0, WINDOW_WORDS, 1)
    is_covered = (num_hits >= COVERED_FRACTION * num_counted) & (num_hits >= fewest)
    # Runs: windows that follow each other in one text, all of them hits.
    breaks = np.flatnonzero(np.diff(owners, prepend=-1) | ~hit)
    lengths = np.diff(np.append(breaks, len(hit))) - (~hit[breaks])
    is_long = lengths >= COVERED_RUN_WORDS - WINDOW_WORDS + 1
    is_covered[owners[breaks[is_long]]] = True
    return is_covered
