"""Lists, a page at a time, as OpenAI's client library walks through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from luthier.platform.http.errors import ApiError

Item = TypeVar("Item")
Order = Literal["asc", "desc"]


def page(
    items: Sequence[Item], *, after: str | None, limit: int, id_of: Callable[[Item], str], show: Callable[[Item], Any]
) -> dict[str, Any]:
    """One page of a list, in the format of OpenAI's lists.

    Args:
        items: The whole list, in order.
        after: The id of the item behind which the page begins; None for the first page.
        limit: The most items of a page.
        id_of: The id of an item.
        show: The item as it is sent.

    Returns:
        `{object, data, has_more, first_id, last_id}`.

    Raises:
        ApiError: 400 where no item has the id `after`. An empty page would look like the end of the list.
    """
    start = 0
    if after is not None:
        places = [number for number, item in enumerate(items) if id_of(item) == after]
        if not places:
            raise ApiError(
                400, f"after={after!r} is not in this list; expected: the id of an item in it", param="after"
            )
        start = places[0] + 1
    shown = items[start : start + limit]
    return {
        "object": "list",
        "data": [show(item) for item in shown],
        "has_more": start + limit < len(items),
        "first_id": id_of(shown[0]) if shown else None,
        "last_id": id_of(shown[-1]) if shown else None,
    }
