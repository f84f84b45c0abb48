"""Batches of prompts: of similar length, with bounded memory and little padding, or with a common prefix.

Rows to be scored that have a common prefix are grouped, and the prefix goes through the model once. A question with 24
candidates is 24 rows that differ in a few tokens; rows behind the same few-shot examples differ in their last part
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from luthier.core.dataset import TokenisedExample, shareable_tokens
from luthier.core.text.prefixes import best_groups, common_tokens


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


MIN_TOKENS: Final = 16
CALL_TOKENS: Final = 100
"""What one more call of the model costs, in tokens: its thin products read all weights once more."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows that go through a model together.

    Attributes:
        rows: their places.
        num_shared: tokens that they begin with in common and that go before them alone; 0 where nothing is shared.
        is_same: whether these are the tokens of the batch before.
    """

    rows: list[int]
    num_shared: int = 0
    is_same: bool = False


def shared_batches(
    examples: Sequence[TokenisedExample], *, max_tokens: int, max_kept_tokens: int, longest_shared: int
) -> list[Shared]:
    """All rows in batches, those that share nothing last.

    Args:
        examples: tokenised rows.
        max_tokens: of a batch with its padding, what is shared not counted; an example longer than that is a batch of
            its own.
        max_kept_tokens: whose keys and values a batch may hold, what is shared counted for each row.
        longest_shared: rows longer than this share nothing.
    """
    keys = [_key(example) if example.num_tokens <= longest_shared else b"" for example in examples]
    # Sorted, rows that begin alike are neighbours, and `common` tells how many tokens each pair shares.
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
    """The ids that may be shared: the token from which the first learned one is predicted stays with its row."""
    # Four bytes an id. Their order means nothing; rows that begin alike become neighbours.
    return bytes(memoryview(example.input_ids).cast("B")[: 4 * max(0, shareable_tokens(example) - 1)])
