"""Lists as the API answers with them: one model for their form, of which each route names its own kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Literal, Self, TypeVar

from pydantic import BaseModel

Item = TypeVar("Item")


class ListObject(BaseModel, Generic[Item]):
    """A list that is whole."""

    object: Literal["list"] = "list"
    data: list[Item]


class PartialList(ListObject[Item], Generic[Item]):
    """The beginning of a list, and whether more follow."""

    has_more: bool


class ListPage(PartialList[Item], Generic[Item]):
    """A page of a list, with the ids of its ends: the last one is `after` of the next page."""

    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, data: Sequence[Item], *, has_more: bool) -> Self:
        """A page of items that have an `id`; one without items has no ends."""
        first, last = (str(getattr(one, "id")) for one in (data[0], data[-1])) if data else (None, None)  # noqa: B009
        return cls(object="list", data=list(data), has_more=has_more, first_id=first, last_id=last)
