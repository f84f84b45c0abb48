"""/v1/responses: create a response, complete or streamed, and count the tokens of its input.

A response and a chat completion of the same conversation are the same request for the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from luthier.core.access import Caller
from luthier.core.conversation import Message
from luthier.core.errors import LuthierError
from luthier.core.stream import TextRequest
from luthier.features.serving.api.answering import ANSWERS, Keep, refused, respond, target_header
from luthier.features.serving.api.counting import counted
from luthier.features.serving.api.responses.body import (
    PromptBody,
    ResponseBody,
    TokenCountBody,
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
from luthier.features.traffic.stored_responses import conversation_before, referenced_items, response_recorder
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Asker, HomeContext
from luthier.platform.http.errors import ApiError, documented

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
        # Each once: a short request could stand for a conversation of any length otherwise.
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
