"""A queue in which keys take turns: however many requests one of them has, the next turn is another's."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First come, first served among the items of one owner; round-robin among owners. Not safe between threads."""

    def __init__(self) -> None:
        self._items: OrderedDict[str | None, deque[Item]] = OrderedDict()  # the owner whose turn it is first

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def push(self, owner: str | None, item: Item) -> None:
        """Have it wait behind the others of its owner; a new owner waits for one turn of each other."""
        self._items.setdefault(owner, deque()).append(item)

    def heads(self) -> list[tuple[str | None, Item]]:
        """The first item of each owner, in the order of their turns."""
        return [(owner, items[0]) for owner, items in self._items.items()]

    def pop(self, owner: str | None) -> Item:
        """Take the first item of this owner out: its next turn comes after all others'."""
        item = self._items[owner].popleft()
        if self._items[owner]:
            # To the end of the ring: everybody else comes first now.
            self._items.move_to_end(owner)
        else:
            del self._items[owner]
        return item

    def postpone(self, owner: str | None) -> None:
        """Leave the items of this owner as they are: its next turn comes after all others'."""
        self._items.move_to_end(owner)

    def remove(self, is_it: Callable[[Item], bool]) -> None:
        """Remove the items that match; turns are not changed."""
        for owner in list(self._items):
            kept = deque(item for item in self._items[owner] if not is_it(item))
            if kept:
                self._items[owner] = kept
            else:
                del self._items[owner]
