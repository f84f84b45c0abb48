"""Who writes in which slot of llama.cpp's server, and what fits into its memory.

A slot keeps the keys and values of the last prompt that was read in it, with the adapter that read it; whoever begins
alike with the same adapter continues from there.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Slot:
    user: Hashable | None = None
    num_tokens: int = 0
    adapter: Hashable | None = None
    ids: Sequence[int] = ()
    last_used: int = 0


class Slots:
    """Slots of one server.

    Args:
        pool_tokens: of all that are in use at once.
    """

    def __init__(self, num_slots: int, pool_tokens: int) -> None:
        self._slots = [_Slot() for _ in range(num_slots)]
        self._pool_tokens = pool_tokens
        self._clock = 0

    @property
    def num_used(self) -> int:
        """Slots in which something is written."""
        return sum(slot.user is not None for slot in self._slots)

    def has_room_for(self, num: int, num_tokens: int) -> bool:
        """Whether that many answers of that many tokens each, prompts included, fit beside those under way."""
        used = sum(slot.num_tokens for slot in self._slots if slot.user is not None)
        return num <= len(self._slots) - self.num_used and used + num * num_tokens <= self._pool_tokens

    def take(self, user: Hashable, adapter: Hashable | None, ids: Sequence[int], num_tokens: int) -> int:
        """The number of a free slot, the one with the longest beginning that can be used again; it is taken."""
        free = [number for number, slot in enumerate(self._slots) if slot.user is None]

        def worth(number: int) -> tuple[int, int]:
            slot = self._slots[number]
            # Keys and values depend on the adapter that read the prompt: those of another are worthless.
            known = _num_alike(slot.ids, ids) if slot.adapter == adapter else 0
            # The most tokens that need not be read again; of equals, the slot that has been idle longest.
            return known, -slot.last_used

        chosen = max(free, key=worth)
        self._clock += 1
        self._slots[chosen] = _Slot(user, num_tokens, adapter, ids, self._clock)
        return chosen

    def give_back(self, number: int) -> None:
        """Nothing is written in it any more; what it has read stays."""
        self._slots[number].user = None


def _num_alike(first: Sequence[int], second: Sequence[int]) -> int:
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
