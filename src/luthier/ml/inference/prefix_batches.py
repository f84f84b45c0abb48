"""Batches of rows to be scored: rows with a common prefix are grouped, and the prefix goes through the model once.

A question with 24 candidates is 24 rows that differ in a few tokens; rows behind the same few-shot examples differ in
their last part only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from luthier.core.dataset import TokenisedExample, shareable_tokens
from luthier.core.text.prefixes import best_groups, common_tokens
from luthier.ml.inference.length_batches import length_batches

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
