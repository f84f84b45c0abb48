"""The order of streamed rows: a pure function of the seed, the epoch and the shards.

    shards in a seeded order -> their records -> sources drawn by weight -> shuffle buffer -> rows

Random numbers are those of the Philox counter generator (Salmon et al., 2011): the n-th one is computed without the
ones before it. So which records are in the buffer after any number of draws is known without reading any
(`buffered_after`), and a run that resumes reads these alone.

A shuffle buffer holds some thousand records, gives out one at random and puts the next one into its place (TensorFlow's
`Dataset.shuffle`, Hugging Face's `IterableDataset.shuffle`). Of sources without weights an epoch holds each record
once; the buffer is emptied at its end. Sources with weights are drawn without end, each begun again where it is done.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

_BLOCK_WORDS: Final = 1024
_WORDS_A_COUNT: Final = 4
# What random numbers are for. They are the highest bits of the key, so that no two kinds share any.
_SHARDS, _DRAWS, _SOURCES, _BATCHES = 1, 2, 3, 4
_KIND_BITS, _LANE_BITS = 56, 40


class Words:
    """An endless sequence of random 64-bit words, each computed from its place alone.

    Args:
        seed: of the run.
        kind: what they are for.
        lane: number of a source.
        number: of an epoch or a group of steps.
    """

    def __init__(self, seed: int, kind: int, number: int, lane: int = 0) -> None:
        tag = kind << _KIND_BITS | lane << _LANE_BITS | number
        self._key = np.array([seed, tag], dtype=np.uint64)
        self._block = -1
        self._words: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)

    def at(self, place: int) -> int:
        """One word."""
        block, inside = divmod(place, _BLOCK_WORDS)
        if block != self._block:
            self._block, self._words = block, self.block(block)
        return int(self._words[inside])

    def block(self, block: int) -> npt.NDArray[np.uint64]:
        """uint64 [1024], the words of a block."""
        # Each count of the 256-bit counter gives four words.
        first = np.array([block * _BLOCK_WORDS // _WORDS_A_COUNT, 0, 0, 0], dtype=np.uint64)
        found: npt.NDArray[np.uint64] = np.random.Philox(key=self._key, counter=first).random_raw(_BLOCK_WORDS)
        return found


def _permutation(words: Words, count: int) -> list[int]:
    blocks = [words.block(number) for number in range(-(-count // _BLOCK_WORDS))]
    keys = np.concatenate(blocks)[:count] if blocks else np.zeros(0, dtype=np.uint64)
    # Sorting random keys is a uniform permutation; a stable sort settles equal ones the same way everywhere.
    return [int(place) for place in np.argsort(keys, kind="stable")]


def shard_order(seed: int, lane: int, pass_number: int, count: int, *, is_shuffled: bool) -> list[int]:
    """The order in which the shards of a source are read.

    Args:
        seed: of the run.
        lane: number of the source.
        pass_number: how often it was read before.
        count: of shards.
        is_shuffled: whether the order is drawn; else it is the given one.
    """
    if not is_shuffled:
        return list(range(count))
    return _permutation(Words(seed, _SHARDS, pass_number, lane), count)


def batch_order(seed: int, window: int, count: int) -> list[int]:
    """The order in which the batches of a group of steps are trained."""
    return _permutation(Words(seed, _BATCHES, window), count)


def draws_of(seed: int, epoch: int) -> Words:
    """The words that choose records of the buffer."""
    return Words(seed, _DRAWS, epoch)


class SourceChoice:
    """Which source each record is of, by weights.

    Args:
        weights: one for each source.
        seed: of the run.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        ends = list(accumulate(weights))
        self._ends = [end / ends[-1] for end in ends[:-1]]
        self._words = Words(seed, _SOURCES, 0)

    def at(self, place: int) -> int:
        """The source of the record at this place of the stream."""
        # 53 bits: as many as a double holds, so that the number is below 1.
        return bisect_right(self._ends, (self._words.at(place) >> 11) * 2.0**-53)


def buffered_after(num_draws: int, size: int, words: Words, num_rows: int | None) -> list[int]:
    """The numbers of the records in a shuffle buffer after some draws, by their places in it.

    Args:
        num_draws: how many records have left it in this epoch.
        size: of the buffer.
        words: of the epoch.
        num_rows: records of the epoch; None where the buffer has not come to its end.
    """
    held = size if num_rows is None else min(size, num_rows)
    slots = np.arange(held, dtype=np.int64)
    num_replaced = num_draws if num_rows is None else min(num_draws, num_rows - held)
    for start in range(0, num_replaced, _BLOCK_WORDS):
        count = min(_BLOCK_WORDS, num_replaced - start)
        places = (words.block(start // _BLOCK_WORDS)[:count] % np.uint64(held)).astype(np.int64)
        # Of equal places the last value stays: NumPy assigns in order.
        slots[places] = np.arange(held + start, held + start + count)
    left = slots.tolist()
    for draw in range(num_replaced, num_draws):
        place = words.at(draw) % len(left)
        left[place] = left[-1]
        left.pop()
    return left
