"""/v1/responses: create a response, complete or streamed, count the tokens of its input; read and delete stored ones.

A response and a chat completion of the same conversation are the same request for the engine.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.types import Receive, Scope, Send

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.core.stream import TextRequest
from luthier.features.serving.api.answering import ANSWERS, Keep, refused, respond, target_header
from luthier.features.serving.api.counting import counted
from luthier.features.serving.api.responses.body import ResponseBody, TokenCountBody, prompt_request, response_request
from luthier.features.serving.api.responses.prompt_items import (
    IncludeQuery,
    check_include,
    conversation_errors,
    conversation_recorder,
    listed_input_items,
    prepared,
)
from luthier.features.serving.api.responses.writer import ResponseObjectWriter
from luthier.features.serving.completion_stream import uncancelled
from luthier.features.traffic.conversations import lock_conversation
from luthier.features.traffic.log import CLIENT_GONE
from luthier.features.traffic.stored_responses import delete_response, response_recorder, stored_response
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


@router.post("", responses=ANSWERS, response_class=Response)
async def create_response(body: ResponseBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """Answer an input with a model; with `stream` as server-sent events."""
    if body.conversation_id is None:
        return await _answered(body, request, context, caller)
    return await _answered_in_conversation(body, request, context, caller, body.conversation_id)


async def _answered_in_conversation(
    body: ResponseBody, request: Request, context: Context, caller: Caller, conversation_id: str
) -> Response:
    """Answer while no other request writes in the conversation."""
    holder = uuid.uuid4().hex

    async def unlock() -> None:
        await uncancelled(to_thread.run_sync(context.conversations.unlock, conversation_id, holder))

    def lock() -> None:
        with conversation_errors("conversation"):
            lock_conversation(context, caller, conversation_id, holder)

    is_going_on = False
    try:
        await to_thread.run_sync(lock)
        answer = await _answered(body, request, context, caller, holder=holder)
        is_going_on = isinstance(answer, StreamingResponse)
    finally:
        # What was answered has unlocked it; this is for all that was not.
        if not is_going_on:
            await unlock()
    return _UnlockingResponse(answer, unlock) if is_going_on else answer


class _UnlockingResponse(Response):
    """A stream that unlocks its conversation however it ends, also where the client leaves before its first byte.

    Args:
        inner: The stream.
        unlock: Called at its end.
    """

    def __init__(self, inner: Response, unlock: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._inner, self._unlock = inner, unlock
        self.raw_headers, self.status_code = inner.raw_headers, inner.status_code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await self._inner(scope, receive, send)
        finally:
            await self._unlock()


async def _answered(
    body: ResponseBody, request: Request, context: Context, caller: Caller, *, holder: str = ""
) -> Response:
    asked, keep, is_stored = await to_thread.run_sync(_begun, context, caller, body, holder)
    try:
        with conversation_errors("conversation"):
            return await respond(
                request,
                context,
                caller,
                model=body.model,
                asked=[asked],
                words=lambda _: ResponseObjectWriter(body, is_stored=is_stored),
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


def _begun(context: Context, caller: Caller, body: ResponseBody, holder: str) -> tuple[TextRequest, Keep | None, bool]:
    """The request for the engine, what keeps its answer, and whether the response is stored."""
    found = prepared(context, caller, body)
    keep = response_recorder(
        context,
        caller,
        parameters=body.model_dump(mode="json", exclude_unset=True, exclude={"input"}, by_alias=True),
        items=found.items,
        earlier_ids=found.earlier_ids,
        wants=body.store,
    )
    is_stored = keep is not None
    if body.conversation_id is not None:
        keep = conversation_recorder(context, caller, body.conversation_id, found.items, holder=holder, keep=keep)
    return response_request(body, found.messages, context.settings.default_max_tokens), keep, is_stored


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
    include: IncludeQuery = None,
    stream: bool = False,
    starting_after: int | None = None,
    include_obfuscation: bool = False,
) -> ResponseObject:
    """One stored response."""
    asked = {"stream": stream, "starting_after": starting_after is not None, "include_obfuscation": include_obfuscation}
    for name in (name for name, is_asked in asked.items() if is_asked):
        message = f"{name} of a response that has ended; expected: a request for the whole response, without it"
        raise ApiError(400, message, param=name, code="unsupported_value")
    check_include(include, response)
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
    include: IncludeQuery = None,
) -> InputItemList:
    """The items of the request, without those of earlier responses; the last one first by default."""
    check_include(include, response)
    items = listed_input_items(response_id, stored_response(context, caller, response_id).document["input"])
    found = page(
        items[::-1] if order == "desc" else items,
        after=after,
        limit=limit,
        id_of=lambda item: str(item["id"]),
        show=lambda item: item,
    )
    return InputItemList.model_validate(found)
