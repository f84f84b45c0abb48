"""Who works on parts of rows: this process, or others (`process_workers`, `ray_workers`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class RowWorkers(Protocol):
    """Apply a function to parts of rows."""

    @property
    def are_remote(self) -> bool:
        """Whether the work is done by other processes, to which parts have to be sent."""
        ...

    def map(self, function: Callable[..., Result], items: Iterable[Any], *shared: Any) -> Iterator[Result]:
        """`function(item, *shared)` for each item, in the order of the items.

        Items are taken as they are needed: as many as are under way, and no more.

        Args:
            function: of a module, and pure: the same arguments give the same result in every process.
            items: parts of rows.
            shared: what all parts need, sent once.
        """
        ...


class InProcess:
    """This process does the work, one part at a time."""

    @property
    def are_remote(self) -> bool:
        """Never."""
        return False

    def map(self, function: Callable[..., Result], items: Iterable[Any], *shared: Any) -> Iterator[Result]:
        """See `RowWorkers`."""
        return (function(item, *shared) for item in items)


IN_PROCESS: Final = InProcess()


def map_with_items(
    workers: RowWorkers, function: Callable[..., Result], items: Iterable[Item], *shared: Any
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in order; items under way are kept in memory."""
    waiting: deque[Item] = deque()

    def noted() -> Iterator[Item]:
        for item in items:
            waiting.append(item)
            yield item

    for result in workers.map(function, noted(), *shared):
        yield waiting.popleft(), result
