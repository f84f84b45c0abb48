"""Shared parts of API routes: ids in addresses, lists and pages as OpenAI's client reads them, forms with files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from fastapi import Path, Query, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from luthier.platform.files.service import IncomingFile
from luthier.platform.http import multipart
from luthier.platform.http.anthropic import BETA, MODELS, is_anthropic
from luthier.platform.http.errors import ApiError
from luthier.platform.http.multipart import Form, FormError

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


Order = Literal["asc", "desc"]
Limit = Annotated[int, Query(ge=1, le=100)]
"""The most entries of a page of a list."""
_OF_CLIENTS: Final = "/v1/"
_RESPONSES: Final = "/v1/responses"


def page(
    items: Sequence[Item], *, after: str | None, limit: int, id_of: Callable[[Item], str], show: Callable[[Item], Any]
) -> dict[str, Any]:
    """One page of a list, in the format of OpenAI's lists.

    Args:
        items: The whole list, in order.
        after: The id of the item behind which the page begins; None for the first page.
        limit: The most items of a page.
        id_of: The id of an item.
        show: The item as sent.

    Returns:
        `{object, data, has_more, first_id, last_id}`.

    Raises:
        ApiError: 400 where no item has the id `after`. An empty page would look like the end of the list.
    """
    start = 0
    if after is not None:
        places = [number for number, item in enumerate(items) if id_of(item) == after]
        if not places:
            message = f"after={after[:100]!r} is not in this list; expected: the id of an item in it"
            raise ApiError(400, message, param="after", code="invalid_value")
        start = places[0] + 1
    shown = items[start : start + limit]
    return {
        "object": "list",
        "data": [show(item) for item in shown],
        "has_more": start + limit < len(items),
        "first_id": id_of(shown[0]) if shown else None,
        "last_id": id_of(shown[-1]) if shown else None,
    }


Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
"""The id of anything; what has another form is the id of nothing and goes no further."""


def query_parameters(route: APIRoute) -> tuple[set[str], set[str]]:
    """The names of the parameters that a route reads from the query: exact ones, and those that may have `[KEY]`."""
    # Those that a route reads by itself are in its part of the OpenAPI document.
    own = {str(one["name"]) for one in (route.openapi_extra or {}).get("parameters", ()) if one["in"] == "query"}
    return {str(one.alias) for one in route.dependant.query_params}, own


def check_query(request: Request) -> None:
    """Refuse what a query of OpenAI's or Anthropic's API holds and its route does not read.

    Raises:
        ApiError: 400, with the name.
    """
    path, route = request.url.path, request.scope.get("route")
    if not request.url.query or not path.startswith(_OF_CLIENTS) or not isinstance(route, APIRoute):
        return
    exact, own = query_parameters(route)
    known = exact | own
    if is_anthropic(path, request.headers):
        if path == MODELS:
            return  # the route has other parameters in this form, and checks them
        known |= {BETA}
    # As `client.beta.responses` of OpenAI's clients sends it.
    elif path == _RESPONSES or path.startswith(f"{_RESPONSES}/"):
        known |= {BETA}
    names = [name for name in request.query_params if name not in known and name.partition("[")[0] not in own]
    if names:
        expected = f"some of {', '.join(sorted(known))}" if known else "no parameters in the address"
        message = f"Unknown parameter: {names[0][:100]!r}; expected: {expected}; what to do: leave it out"
        raise ApiError(400, message, param=names[0][:100], code="unknown_parameter")


async def read_form(
    request: Request, incoming: IncomingFile, *, file_field: str, fields: frozenset[str], most_bytes: int
) -> Form:
    """Write the file of a form to `incoming` and return the rest; arguments as `multipart.read_form` has them.

    Raises:
        ApiError: 413 for a file that is too large; 400 for another body, unknown or missing fields, and a client that
            left before the end.
        StorageFullError: The disk has no room for the file.
    """
    try:
        return await multipart.read_form(
            request.stream(), request.headers, incoming, file_field=file_field, fields=fields, most_bytes=most_bytes
        )
    except FormError as error:
        raise ApiError(error.status, error.in_one_line, param=error.param, code=error.code) from error
    # The client does not read this response, but the log and the metrics count the request as refused and not as a bug.
    except ClientDisconnect as error:
        raise ApiError(400, "The client disconnected before the body was complete") from error


def chosen(fields: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """A field that must have one of these values.

    Raises:
        ApiError: 400 where it is missing or has another value.
    """
    if name not in fields:
        raise ApiError(400, f"Missing required parameter: {name!r}", param=name, code="missing_required_parameter")
    if fields[name] not in choices:
        message = f"{fields[name][:100]!r} is not one of {', '.join(choices)}"
        raise ApiError(400, message, param=name, code="invalid_value")
    return fields[name]
