"""Batches of similar length: little padding, and a bound on the memory that one batch takes."""

from __future__ import annotations

from collections.abc import Sequence


def length_batches(lengths: Sequence[int], *, max_tokens: int, max_rows: int) -> list[list[int]]:
    """Group indices into batches of like length, longest first, so that a batch too big shows itself at once.

    A batch holds at most `max_rows` items, and rows times its longest row is at most `max_tokens`; an item longer than
    that is a batch of its own. Equal lengths keep their order.

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


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all sequences share."""
    if not sequences:
        return 0
    # What the first and the last in dictionary order share, all in between share too.
    low, high = min(map(tuple, sequences)), max(map(tuple, sequences))
    for position, (one, other) in enumerate(zip(low, high, strict=False)):
        if one != other:
            return position
    return min(len(low), len(high))
