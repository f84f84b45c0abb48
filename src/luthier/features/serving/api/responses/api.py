"""/v1/responses: create a response, complete or streamed, count the tokens of its input; read and delete stored ones.

A response and a chat completion of the same conversation are the same request for the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from luthier.core.access import Caller
from luthier.core.conversation import Message
from luthier.core.errors import LuthierError
from luthier.core.ids import sha256_bytes
from luthier.core.stream import TextRequest
from luthier.features.serving.api.answering import ANSWERS, WARNING_HEADER, Keep, refused, respond, target_header
from luthier.features.serving.api.counting import counted
from luthier.features.serving.api.responses.body import (
    PromptBody,
    ResponseBody,
    TokenCountBody,
    fault_of_include,
    include_warning,
    prompt_request,
    response_request,
)
from luthier.features.serving.api.responses.items import (
    Item,
    ItemReference,
    item_documents,
    messages_of,
    parsed_items,
)
from luthier.features.serving.api.responses.writer import ResponseObjectWriter
from luthier.features.traffic.log import CLIENT_GONE
from luthier.features.traffic.stored_responses import (
    StoredResponse,
    conversation_before,
    delete_response,
    referenced_items,
    response_recorder,
    stored_response,
)
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Asker, HomeContext, Looker
from luthier.platform.http.errors import ApiError, documented
from luthier.platform.http.routes import Id, Limit, ListPage, Order, page

router = APIRouter(prefix="/v1/responses", tags=["responses"])

_OWN_NAMES: Final = {"reasoning_effort": "reasoning.effort"}
"""Parameters by the name that chat completions give them in errors."""


class TokenCount(BaseModel):
    """The tokens of an input."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


@dataclass(frozen=True, slots=True)
class PreparedResponse:
    """A request with its conversation.

    Attributes:
        messages: The whole conversation.
        items: Those of the request, as they are stored.
        earlier_ids: The responses before it.
    """

    messages: tuple[Message, ...]
    items: list[dict[str, Any]]
    earlier_ids: list[str]


def prepared(context: Context, caller: Caller, body: PromptBody) -> PreparedResponse:
    """The conversation of a request, with that of the response it continues; reads the database.

    Raises:
        ApiError: Items that do not belong together, or a reference to one that is not stored.
        UnsupportedError: The response before it is not there.
    """
    earlier = []
    if body.previous_response_id is not None:
        earlier = conversation_before(context, caller, body.previous_response_id)
    before = parsed_items(item for one in earlier for item in one.items)
    own = _resolved(context, caller, body.input)
    messages = messages_of(body.instructions, [*before, *own], len(before))
    return PreparedResponse(messages, item_documents(own), [one.response_id for one in earlier])


def _resolved(context: Context, caller: Caller, items: Sequence[Item]) -> list[Item]:
    """The items of a request, with those of stored answers in place of references to them."""
    known = referenced_items(context, caller, [item.id for item in items if isinstance(item, ItemReference)])
    found: list[Item] = []
    seen = set[str]()
    for place, item in enumerate(items):
        if not isinstance(item, ItemReference):
            found.append(item)
            continue
        param = f"input.{place}.id"
        # Each once: a short request could otherwise refer to a conversation of any length.
        if item.id in seen:
            message = f"Duplicate item found with id {item.id!r}; expected: each item once; what to do: leave it out"
            raise ApiError(400, message, param=param, code="invalid_value")
        if item.id not in known:
            message = (
                f"Item with id {item.id!r} not found; expected: an item of a stored answer of this project (not "
                "deleted, not expired, not created with store: false); what to do: send the item itself"
            )
            raise ApiError(404, message, param=param, code="item_not_found")
        seen.add(item.id)
        found += parsed_items([known[item.id]])
    return found


@router.post("", responses=ANSWERS, response_class=Response)
async def create_response(body: ResponseBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """Answer an input with a model; with `stream` as server-sent events."""
    asked, keep = await to_thread.run_sync(_begun, context, caller, body)
    try:
        return await respond(
            request,
            context,
            caller,
            model=body.model,
            asked=[asked],
            words=lambda _: ResponseObjectWriter(body, is_stored=keep is not None),
            is_streamed=bool(body.stream),
            user=body.end_user(),
            keep=keep,
            warning=body.warning,
        )
    except ApiError as error:
        error.param = named_here(error.param)
        raise


def named_here(param: str | None) -> str | None:
    """The parameter of this API, by the name that errors of the engine give it."""
    return _OWN_NAMES.get(param or "", param)


def refused_here(error: LuthierError) -> ApiError:
    """An error of the engine, in OpenAI's format."""
    made = refused(error)
    made.param = named_here(made.param)
    return made


def _begun(context: Context, caller: Caller, body: ResponseBody) -> tuple[TextRequest, Keep | None]:
    found = prepared(context, caller, body)
    keep = response_recorder(
        context,
        caller,
        parameters=body.model_dump(mode="json", exclude_unset=True, exclude={"input"}, by_alias=True),
        items=found.items,
        earlier_ids=found.earlier_ids,
        wants=body.store,
    )
    return response_request(body, found.messages, context.settings.default_max_tokens), keep


@router.post("/input_tokens", response_model=TokenCount, responses=documented(404))
async def count_input_tokens(body: TokenCountBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """Count the tokens of an input as the model reads it, without an answer."""
    asked = await to_thread.run_sync(lambda: prompt_request(body, prepared(context, caller, body).messages))
    try:
        answer = await counted(request, context, caller, body.model, asked)
    except ApiError as error:
        error.param = named_here(error.param)
        raise
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    document = TokenCount(input_tokens=answer.num_prompt_tokens).model_dump()
    return JSONResponse(document, headers=target_header(answer.routed))


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
    response: Response,
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
    _check(include, response)
    return ResponseObject.model_validate(stored_response(context, caller, response_id).document["response"])


@router.delete("/{response_id}", response_model=ResponseDeleted, responses=documented(404))
def delete(response_id: Id, caller: Asker, context: HomeContext) -> ResponseDeleted:
    """Delete a stored response; those that continue it can no longer be continued."""
    delete_response(context, caller, response_id)
    return ResponseDeleted(id=response_id)


@router.post("/{response_id}/cancel", response_model=ResponseObject, responses=documented(404))
def cancel(response_id: Id, caller: Asker, context: HomeContext) -> ResponseObject:
    """Refused: a response ends with its request, and background runs (`background`) are not supported."""
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
    response: Response,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "desc",
    include: _Include = None,
) -> InputItemList:
    """The items of the request, without those of earlier responses; the last one first by default."""
    _check(include, response)
    items = input_items(stored_response(context, caller, response_id))
    found = page(
        items[::-1] if order == "desc" else items,
        after=after,
        limit=limit,
        id_of=lambda item: str(item["id"]),
        show=lambda item: item,
    )
    return InputItemList.model_validate(found)


def _check(include: list[str] | None, response: Response) -> None:
    """Refuse what does not exist, and warn about what no answer has.

    Likelihoods are part of a response that was created with them.
    """
    for name in include or ():
        if (fault := fault_of_include(name)) is not None:
            raise ApiError(400, fault, param="include", code="invalid_value")
    if (warning := include_warning(include)) is not None:
        response.headers[WARNING_HEADER] = warning


def input_items(one: StoredResponse) -> list[dict[str, Any]]:
    """The items of the request of a response, each with an id."""
    found, prefixes = [], {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
    for place, item in enumerate(one.document["input"]):
        digest = sha256_bytes(f"{one.response_id}:{place}".encode())[:32]
        # An item that an answer is sent back with has its id already.
        own = {"id": f"{prefixes[item['type']]}_{digest}", "status": "completed"}
        found.append(own | item)
    return found
