"""Asks that have come and whose prompts have still to go through the model, and which of them are next."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final

from luthier.engines.asks import Prepared
from luthier.engines.decode import PREFILL_TOKENS, Prefix, Request
from luthier.engines.length_batches import length_batches

# A longer prompt goes through the model in parts of so many tokens, between the steps of the others.
PART_TOKENS: Final = 512


@dataclass(slots=True, eq=False)
class Arrival:
    """An ask for text. prefix: what of a long prompt has gone through the model already."""

    key: Hashable
    prepared: Prepared
    adapter: str | None
    prefix: Prefix | None = None

    @property
    def num_left(self) -> int:
        """How many tokens of the prompt have still to go through the model."""
        return len(self.prepared.request.ids) - (0 if self.prefix is None else self.prefix.num_tokens)

    def next_part(self) -> Sequence[int]:
        """The next tokens of a long prompt; none where all that are left go together."""
        if self.num_left <= PART_TOKENS:
            return ()
        ids = self.prepared.request.ids
        done = len(ids) - self.num_left
        return ids[done : done + PART_TOKENS]


@dataclass(frozen=True, slots=True)
class EmbeddingAsk:
    """Texts that are made into vectors, a part of like length a poll; `found` by their places."""

    key: Hashable
    inputs: list[Request]
    adapter: str | None
    parts: list[list[int]]
    found: dict[int, list[float]] = field(default_factory=dict)


def next_arrivals(arrivals: Sequence[Arrival], fits: Callable[[int], bool], max_rows: int) -> list[Arrival]:
    """Whoever came first, and those of like length whose prompts go through the model with it.

    fits: whether rows of so many tokens can be padded.
    """
    first = arrivals[0]
    if first.prefix is not None or first.next_part():
        return [first]
    fitting = [one for one in arrivals if not one.next_part() and fits(one.prepared.num_tokens)]
    if first not in fitting:
        return [first]
    parts = length_batches([one.num_left for one in fitting], max_tokens=PREFILL_TOKENS, max_rows=max_rows)
    return [fitting[place] for place in next(part for part in parts if 0 in part)]
