"""Batches of prompts: of similar length, with bounded memory and little padding, or with a common prefix.

Rows with a common prefix are scored in groups, and the prefix is computed once. A question with 24 candidates is 24
rows that differ in a few tokens; rows with the same few-shot examples differ only in their last part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from luthier.core.dataset import TokenisedExample, shareable_tokens
from luthier.core.text.prefixes import best_groups, common_tokens


def length_batches(lengths: Sequence[int], *, max_tokens: int, max_rows: int) -> list[list[int]]:
    """Group indices into batches of similar length, longest first, so that running out of memory shows immediately.

    A batch holds at most `max_rows` items, and rows times its longest row is at most `max_tokens`; a longer item
    becomes a batch by itself. Equal lengths keep their order.

    Args:
        lengths: tokens of each item.
        max_tokens: of a batch, padding included.
        max_rows: of a batch.

    Returns:
        Batches of indices into `lengths`.
    """
    # Sorted is stable. Longest first: memory runs out in the first batch or never.
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        if batches and len(batches[-1]) < max_rows:
            # The first of a batch is its longest, so padding included the batch takes longest * rows.
            longest = lengths[batches[-1][0]]
            if longest * (len(batches[-1]) + 1) <= max_tokens:
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches


def in_two_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Divide rows that are padded to the longest of their group into longer and shorter ones, as documents and queries.

    The cut is where it saves the most padding; where it saves no more than another call costs, all stay together.

    Args:
        lengths: tokens of each row; at least one row.

    Returns:
        One group in the order of the rows, or two, each in that order.
    """
    num = len(lengths)
    order = sorted(range(num), key=lambda index: -lengths[index])
    # With the first `cut` of them apart, the others are as long as the next one instead of the first.
    saved = [(num - cut) * (lengths[order[0]] - lengths[order[cut]]) for cut in range(1, num)]
    if max(saved, default=0) <= CALL_TOKENS:
        return [list(range(num))]
    cut = 1 + saved.index(max(saved))
    return [sorted(order[:cut]), sorted(order[cut:])]


def memory_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Divide rows that are padded to the longest of their batch into as few batches as memory needs.

    All stay together where they fit, padding included, since each batch reads all weights. Else the batch with the most
    padding is divided, where that saves the most of it; rows of equal length are never divided.

    Args:
        lengths: tokens of each row.
        most_tokens: of all batches together, padding included; more where there is no padding left to save.

    Returns:
        Batches of indices into `lengths`, the longest rows first.
    """
    batches = [sorted(range(len(lengths)), key=lambda index: -lengths[index])] if lengths else []
    while padded_tokens(lengths, batches) > most_tokens:
        saved, number, cut = max(
            (
                ((len(batch) - cut) * (lengths[batch[0]] - lengths[batch[cut]]), number, cut)
                for number, batch in enumerate(batches)
                for cut in range(1, len(batch))
            ),
            default=(0, 0, 0),
        )
        if not saved:
            break
        batches[number : number + 1] = [batches[number][:cut], batches[number][cut:]]
    return batches


def padded_tokens(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> int:
    """The tokens of all rows, each padded to the longest of its batch."""
    return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """The number of leading tokens that all sequences share."""
    if not sequences:
        return 0
    # All sequences share what the first and the last one in lexicographic order share.
    low, high = min(map(tuple, sequences)), max(map(tuple, sequences))
    for position, (one, other) in enumerate(zip(low, high, strict=False)):
        if one != other:
            return position
    return min(len(low), len(high))


MIN_TOKENS: Final = 16
CALL_TOKENS: Final = 100
"""The cost of one more model call, in tokens: a small batch still reads all weights."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows that go through a model together.

    Attributes:
        rows: their indices.
        num_shared: length of their common prefix, which is computed once before them; 0 if nothing is shared.
        is_same: whether the prefix is the same as that of the previous batch.
    """

    rows: list[int]
    num_shared: int = 0
    is_same: bool = False


def shared_batches(
    examples: Sequence[TokenisedExample], *, max_tokens: int, max_kept_tokens: int, longest_shared: int
) -> list[Shared]:
    """Divide all rows into batches; rows without a shared prefix come last.

    Args:
        examples: tokenised rows.
        max_tokens: of a batch, including padding and excluding the shared prefix; a longer example becomes a batch by
            itself.
        max_kept_tokens: maximum tokens in the KV cache of a batch; the shared prefix counts for each row.
        longest_shared: longer rows share no prefix.
    """
    keys = [_key(example) if example.num_tokens <= longest_shared else b"" for example in examples]
    # After sorting, rows with a common prefix are neighbours, and `common` holds its length for each pair.
    order = sorted(range(len(examples)), key=keys.__getitem__)
    common = [common_tokens(keys[one], keys[other]) for one, other in pairwise(order)]
    batches: list[Shared] = []
    alone = set(order)
    groups = best_groups(common, rows_at_once=1.0, least_tokens=MIN_TOKENS, cost_tokens=CALL_TOKENS)
    for start, stop, num_shared in groups:
        members = order[start:stop]
        alone -= set(members)
        longest = max(examples[row].num_tokens for row in members)
        lengths = [examples[row].num_tokens - num_shared for row in members]
        # The prefix's keys and values are copied for every row of a batch.
        most_rows = max(1, max_kept_tokens // longest)
        parts = length_batches(lengths, max_tokens=max_tokens, max_rows=most_rows)
        batches += [Shared([members[i] for i in part], num_shared, number > 0) for number, part in enumerate(parts)]
    rest = sorted(alone)
    lengths = [examples[row].num_tokens for row in rest]
    parts = length_batches(lengths, max_tokens=max_tokens, max_rows=max(1, len(rest)))
    return batches + [Shared([rest[i] for i in part]) for part in parts]


def _key(example: TokenisedExample) -> bytes:
    """The ids that may be shared: the token that predicts the first learned one stays with its row."""
    # Four bytes per id. The order is arbitrary, but rows with a common prefix become neighbours.
    return bytes(memoryview(example.input_ids).cast("B")[: 4 * max(0, shareable_tokens(example) - 1)])
