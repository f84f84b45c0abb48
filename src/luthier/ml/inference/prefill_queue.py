"""Queue of requests whose prompts still have to be prefilled, and the choice of the next batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from luthier.ml.inference.decode import PREFILL_TOKENS, Prefix
from luthier.ml.inference.length_batches import length_batches
from luthier.ml.inference.request import Prepared

# A longer prompt is prefilled in parts of this many tokens, between the decoding steps of other requests.
PART_TOKENS: Final = 512


@dataclass(slots=True, eq=False)
class QueuedPrompt:
    """A request for text.

    Attributes:
        key: of the request.
        prepared: its tokens and limits.
        adapter: name of its adapter; None for the base.
        owner: whom turns are shared out by; None is an owner of its own.
        prefix: the part of a long prompt that has gone through the model.
    """

    key: Hashable
    prepared: Prepared
    adapter: str | None
    owner: str | None = None
    prefix: Prefix | None = None

    @property
    def num_remaining(self) -> int:
        """How many tokens of the prompt have still to go through the model."""
        return len(self.prepared.request.ids) - (0 if self.prefix is None else self.prefix.num_tokens)

    def next_part(self) -> Sequence[int]:
        """The next tokens of a long prompt; none where all that are left go together."""
        if self.num_remaining <= PART_TOKENS:
            return ()
        ids = self.prepared.request.ids
        done = len(ids) - self.num_remaining
        return ids[done : done + PART_TOKENS]


class Owned(Protocol):
    """A request that belongs to an owner."""

    owner: str | None


_Waiting = TypeVar("_Waiting", bound=Owned)


class PrefillTurns:
    """Whose prompt goes through the model next: that of the owner who has waited longest since the last one.

    So a long prompt of one holds up a short one of another for one part at most, and not until its end.
    """

    def __init__(self) -> None:
        self._served: dict[str | None, int] = {}
        self._num_turns = 0

    def first(self, waiting: Sequence[_Waiting]) -> _Waiting:
        """The one whose turn it is: of one owner whoever came first.

        Args:
            waiting: not empty, in the order of arrival.
        """
        # `min` takes the first of equals: within an owner the order of arrival holds.
        chosen = min(waiting, key=lambda one: self._served.get(one.owner, 0))
        self._num_turns += 1
        owners = {one.owner for one in waiting}  # those who have gone start over when they come again
        self._served = {owner: turn for owner, turn in self._served.items() if owner in owners}
        self._served[chosen.owner] = self._num_turns
        return chosen


def next_prefill_batch(
    first: QueuedPrompt, arrivals: Sequence[QueuedPrompt], fits: Callable[[int], bool], max_rows: int
) -> list[QueuedPrompt]:
    """The request whose turn it is, and those of like length whose prompts go through the model with it.

    Args:
        first: whose turn it is.
        arrivals: the queue, `first` included, without those that may not go beside it.
        fits: whether rows of that many tokens can be padded.
        max_rows: of a batch.
    """
    # A long prompt goes alone: its cache has a length of its own, and parts of others would delay it.
    if first.prefix is not None or first.next_part():
        return [first]
    fitting = [one for one in arrivals if one.prefix is None and not one.next_part() and fits(one.prepared.num_tokens)]
    if first not in fitting:
        return [first]
    parts = length_batches([one.num_remaining for one in fitting], max_tokens=PREFILL_TOKENS, max_rows=max_rows)
    # Of the batches by length the one with `first`: the others have their turn later.
    own = fitting.index(first)
    return [fitting[place] for place in next(part for part in parts if own in part)]
