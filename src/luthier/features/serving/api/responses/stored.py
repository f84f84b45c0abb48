"""/v1/responses/{id}: responses that are stored: read them and their input, and delete them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from luthier.core.ids import sha256_bytes
from luthier.features.serving.api.responses.body import fault_of_include
from luthier.features.traffic.stored_responses import StoredResponse, delete_response, stored_response
from luthier.platform.http.authentication import Asker, HomeContext, Looker
from luthier.platform.http.errors import ApiError, documented
from luthier.platform.http.routes import Id, ListPage, Order, page

router = APIRouter(prefix="/v1/responses", tags=["responses"])

_Limit = Annotated[int, Query(ge=1, le=100)]
# The client writes lists as `include[]=a&include[]=b`.
_Include = Annotated[list[Annotated[str, Field(max_length=100)]] | None, Query(alias="include[]", max_length=8)]


class ResponseObject(BaseModel):
    """A response, as it was answered.

    Attributes:
        id: `resp_...`.
        object: Always `response`.
        created_at: Seconds since 1970.
        status: `incomplete` if the answer was cut off.
        model: As requested.
        output: The items of the answer.
        usage: Tokens of input and output.
        metadata: As of the request.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]
    metadata: dict[str, str]


class ResponseDeleted(BaseModel):
    """What is left of a stored response."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputItemList(ListPage[dict[str, Any]]):
    """A page of the items of a request.

    Attributes:
        object: Always `list`.
        data: The items.
        has_more: Whether more follow.
        first_id: Id of the first item; None for an empty page.
        last_id: Id of the last item, for `after`; None for an empty page.
    """

    object: Literal["list"]


@router.get("/{response_id}", response_model=ResponseObject, responses=documented(404))
def retrieve(
    response_id: Id,
    caller: Looker,
    context: HomeContext,
    include: _Include = None,
    stream: bool = False,
    starting_after: int | None = None,
    include_obfuscation: bool = False,
) -> ResponseObject:
    """One stored response."""
    asked = {"stream": stream, "starting_after": starting_after is not None, "include_obfuscation": include_obfuscation}
    for name in (name for name, is_asked in asked.items() if is_asked):
        message = f"{name} of a response that has ended; expected: a request for the whole response, without it"
        raise ApiError(400, message, param=name, code="unsupported_value")
    _check(include)
    return ResponseObject.model_validate(stored_response(context, caller, response_id).document["response"])


@router.delete("/{response_id}", response_model=ResponseDeleted, responses=documented(404))
def delete(response_id: Id, caller: Asker, context: HomeContext) -> ResponseDeleted:
    """Delete a stored response; those that continue it can no longer be continued."""
    delete_response(context, caller, response_id)
    return ResponseDeleted(id=response_id)


@router.post("/{response_id}/cancel", response_model=ResponseObject, responses=documented(404))
def cancel(response_id: Id, caller: Asker, context: HomeContext) -> ResponseObject:
    """Refused: a response ends with its request, and runs of their own (`background`) are not supported."""
    stored_response(context, caller, response_id)
    raise ApiError(
        400,
        "Cannot cancel a synchronous response: it has ended; expected: a response that was created with background: "
        "true, which this server does not support; what to do: close the connection of a request to cancel it",
        code="invalid_value",
    )


@router.get("/{response_id}/input_items", response_model=InputItemList, responses=documented(404))
def list_input_items(
    response_id: Id,
    caller: Looker,
    context: HomeContext,
    after: str | None = None,
    limit: _Limit = 20,
    order: Order = "desc",
    include: _Include = None,
) -> InputItemList:
    """The items of the request, without those of earlier responses; the last one first by default."""
    _check(include)
    items = input_items(stored_response(context, caller, response_id))
    found = page(
        items[::-1] if order == "desc" else items,
        after=after,
        limit=limit,
        id_of=lambda item: str(item["id"]),
        show=lambda item: item,
    )
    return InputItemList.model_validate(found)


def _check(include: list[str] | None) -> None:
    """Refuse what does not exist. Likelihoods are part of a response that was created with them."""
    for name in include or ():
        if (fault := fault_of_include(name)) is not None:
            raise ApiError(400, fault, param="include", code="invalid_value")


def input_items(one: StoredResponse) -> list[dict[str, Any]]:
    """The items of the request of a response, each with an id."""
    found, prefixes = [], {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
    for place, item in enumerate(one.document["input"]):
        digest = sha256_bytes(f"{one.response_id}:{place}".encode())[:32]
        # An item that an answer is sent back with has its id already.
        own = {"id": f"{prefixes[item['type']]}_{digest}", "status": "completed"}
        found.append(own | item)
    return found
