"""Batches of rows to be scored: each with the prefix that its rows share, and its results as they cross processes."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import torch
from torch import Tensor

from luthier.core.ports import Score
from luthier.ml.inference.side_by_side import Advance, Form

if TYPE_CHECKING:
    from luthier.core.dataset import TokenisedExample
    from luthier.ml.inference.batches import Shared
    from luthier.ml.inference.decode import Prefix
    from luthier.ml.inference.likelihood import Scorer

Found = TypeVar("Found")


class ScoreBatches(Generic[Found]):
    """Computes a batch by its number (`side_by_side.Compute`).

    Args:
        rows: all rows.
        batches: which of them go through the model together; batches with one prefix follow one another.
        scorer: computes prefixes.
        look: gets the rows of a batch with their prefix, and finds something of each.
    """

    def __init__(
        self,
        rows: Sequence[TokenisedExample],
        batches: Sequence[Shared],
        scorer: Scorer,
        look: Callable[[Sequence[TokenisedExample], Prefix | None], list[Found]],
    ) -> None:
        self._rows, self._batches, self._scorer, self._look = rows, batches, scorer, look
        # Of each batch the first one with its prefix.
        self._first: list[int] = []
        for number, batch in enumerate(batches):
            self._first.append(self._first[-1] if batch.is_same else number)
        self._held: tuple[int, Prefix | None] = (-1, None)
        """The prefix that was computed last, and the first batch that has it: one is in memory at a time."""

    def __call__(self, number: int, advance: Advance) -> list[Found]:
        """What is found of each row of a batch."""
        batch, first = self._batches[number], self._first[number]
        # A worker may get any of the batches with one prefix: it computes the prefix once for those that it gets.
        if self._held[0] != first:
            self._held = (-1, None)
            ids = self._rows[batch.rows[0]].input_ids[: batch.num_shared]
            self._held = (first, self._scorer.begin(ids) if batch.num_shared else None)
        found = self._look([self._rows[row] for row in batch.rows], self._held[1])
        advance(len(batch.rows))
        return found


SCORES: Final[Form[list[Score]]] = Form(
    encode=lambda _, made: [[one.nll_nats, one.num_tokens, one.num_correct] for one in made],
    decode=lambda _, message: [Score(nll_nats=one[0], num_tokens=one[1], num_correct=one[2]) for one in message],
)


def shared_states(counts: Sequence[int], scorer: Scorer, batches: Sequence[Shared]) -> Form[list[Tensor]]:
    """The form of the hidden states of all rows: they are in memory that forked processes share.

    Args:
        counts: states of each row: its learned tokens.
        scorer: finds them.
        batches: the rows of each batch.
    """
    width, dtype = scorer.state_form
    total = sum(counts) * width
    # Anonymous memory, whose pages are taken when they are first written.
    memory = mmap.mmap(-1, max(1, total) * dtype.itemsize)
    whole = torch.frombuffer(memory, dtype=dtype)[:total].view(
        sum(counts), width
    )  # [learned tokens of all rows, width]
    rooms = torch.split(whole, list(counts))

    def encode(number: int, made: Sequence[Tensor]) -> None:
        for row, states in zip(batches[number].rows, made, strict=True):
            if states.dtype != dtype or states.shape != rooms[row].shape:
                raise ValueError(f"states of {states.dtype} {list(states.shape)}, not {dtype} {list(rooms[row].shape)}")
            rooms[row].copy_(states)

    return Form(encode, lambda number, _: [rooms[row] for row in batches[number].rows])
