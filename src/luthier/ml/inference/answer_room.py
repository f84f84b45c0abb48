"""How many answers memory holds, by what has been written of them, and which is paused where it holds them no longer.

Few answers get as long as their request allows: with the limit of each reserved from its beginning, memory would hold
half as many as its keys and values need. So a request is taken up where its prompt and a block of new tokens fit, and
where the answers under way outgrow memory, the youngest is paused: its keys and values are dropped, and computed again
from its prompt and what it has written once there is room. vLLM does the same (Kwon et al., 2023, arXiv:2309.06180).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from luthier.ml.inference.answer_row import AnswerRow
from luthier.ml.inference.batches import memory_batches, padded_tokens
from luthier.ml.inference.request import QueuedPrompt

BLOCK_TOKENS: Final = 256
"""Keys and values are reserved by so many tokens: each further block may change which rows share a batch."""
RESERVE: Final = 1.25
"""Of the ordinary capacity: what owners without running requests may use when all places are taken."""


@dataclass(frozen=True, slots=True)
class AnswerRoom:
    """What memory holds.

    Attributes:
        max_rows: answers at once.
        batch_tokens: of their keys and values, padding included.
    """

    max_rows: int
    batch_tokens: int

    def holds(self, lengths: Sequence[int], share: float) -> bool:
        """Whether keys and values of rows fit.

        Args:
            lengths: reserved tokens of each.
            share: of the ordinary capacity that may be used.
        """
        # A batch is rectangular: every row takes the memory of the longest.
        most_tokens = share * self.batch_tokens
        return padded_tokens(lengths, memory_batches(lengths, int(most_tokens))) <= most_tokens

    def has_place_for(self, lengths: Sequence[int], share: float) -> bool:
        """Whether so many rows of these lengths may be written at once."""
        return len(lengths) <= share * self.max_rows and self.holds(lengths, share)


def _reserved(num_tokens: int, most_tokens: int) -> int:
    """Whole blocks for the tokens so far and the next one; never more than can be written."""
    return min(most_tokens, (num_tokens // BLOCK_TOKENS + 1) * BLOCK_TOKENS)


def row_tokens(row: AnswerRow) -> int:
    """Tokens that are reserved for an answer that is being written."""
    return _reserved(row.num_tokens - row.max_new_tokens + row.num_new_tokens, row.num_tokens)


def prompt_tokens(prompt: QueuedPrompt) -> list[int]:
    """The same for each answer to a prompt that is not read yet."""
    return [_reserved(len(prompt.prepared.request.ids), prompt.prepared.num_tokens)] * prompt.num_rows


def growth_share(prompts: Iterable[QueuedPrompt]) -> float:
    """The share of the ordinary capacity that answers may grow into: that of owners without running requests, too,
    where one of these may have used it.

    Args:
        prompts: what each row began with, and those that are not read yet.
    """
    return RESERVE if len({prompt.owner for prompt in prompts}) > 1 else 1.0


def youngest(prompts: Mapping[int, QueuedPrompt]) -> int:
    """The row to be paused: the one that came last, of the owner with the most.

    Args:
        prompts: by row, what it began with; not empty.
    """
    num_of = Counter(prompt.owner for prompt in prompts.values())
    return max(prompts, key=lambda number: (num_of[prompts[number].owner], prompts[number].order, number))


def paused(prompt: QueuedPrompt, row: AnswerRow) -> QueuedPrompt:
    """An answer as a prompt that it continues: the prompt that it began with, and what it has written.

    Args:
        prompt: what the row began with, when it was taken up or continued.
        row: the answer, which has not ended.
    """
    num_prompt = row.num_tokens - row.max_new_tokens
    request = replace(
        prompt.prepared.request,
        ids=[*prompt.prepared.request.ids[:num_prompt], *row.token_ids],
        max_new_tokens=row.max_new_tokens - row.num_new_tokens,
    )
    return replace(prompt, prepared=replace(prompt.prepared, request=request), row=row)
