"""/v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, over the service of chat completions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.core.stream import TextRequest
from luthier.features.serving import service as serving
from luthier.features.serving.api.answering import (
    ENGINE_HEADER,
    WARNING_HEADER,
    Event,
    refused,
    respond,
    target_header,
    watch,
)
from luthier.features.serving.api.message_answer import MessageWriter
from luthier.features.serving.api.message_body import MessagesBody, PromptBody
from luthier.features.serving.api.message_turns import message_request
from luthier.features.serving.completion_stream import queued, uncancelled
from luthier.features.serving.models import route, user_of
from luthier.features.traffic.log import CLIENT_GONE
from luthier.platform.home.context import Context
from luthier.platform.http.anthropic import check_headers
from luthier.platform.http.authentication import Asker, HomeContext, count_refused
from luthier.platform.http.errors import MESSAGES, ApiError

router = APIRouter(prefix=MESSAGES, tags=["messages"])

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The message", "content": {"application/json": {}, "text/event-stream": {}}}
}
_COUNTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The number of tokens", "content": {"application/json": {}}}
}
# What the engine refuses, by its name in chat completions and by its name here.
_NAMES: Final = {"reasoning_effort": "output_config.effort"}
_THINKING: Final = "thinking, of a model"
BUDGET_ENGINE: Final = "transformers"
"""The engine that closes a thought when its budget is used up."""


@router.post("", responses=_ANSWERS, response_class=Response)
async def create_message(body: MessagesBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """Generate the next turn of a conversation; with `stream` as server-sent events."""
    check_headers(request.headers)
    asked = message_request(body)
    try:
        answer = await respond(
            request,
            context,
            caller,
            model=body.model,
            asked=[asked],
            words=lambda _: MessageWriter(
                body.model, body.max_tokens, request.state.request_id, shows_thoughts=body.shows_thoughts
            ),
            is_streamed=bool(body.stream),
            user=body.user,
        )
    except ApiError as error:
        raise _renamed(error) from error
    engine = answer.headers.get(ENGINE_HEADER, BUDGET_ENGINE)
    if asked.thinking_budget is not None and engine != BUDGET_ENGINE:
        warning = f"the engine {engine} does not close a thought at budget_tokens: max_tokens alone limits it"
        answer.headers.setdefault(WARNING_HEADER, warning)
    return answer


@router.post("/count_tokens", responses=_COUNTED, response_class=Response)
async def count_message_tokens(body: PromptBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """Count the tokens of a prompt, template and tools included, without generating anything."""
    check_headers(request.headers)
    try:
        return await _count(request, context, caller, body.model, message_request(body))
    except ApiError as error:
        raise _renamed(error) from error


def _renamed(error: ApiError) -> ApiError:
    """An error with the names of this API's parameters."""
    if error.message.startswith(_THINKING):
        error.param = "thinking"
    if (name := _NAMES.get(error.param or "")) is None:
        return error
    message = error.message.replace(error.param or "", name)
    return ApiError(error.status, message, type=error.type, param=name, code=error.code, headers=error.headers)


async def _count(request: Request, context: Context, caller: Caller, model: str, asked: TextRequest) -> Response:
    """Have the engine count a prompt; a disconnected client cancels the request.

    Raises ApiError.
    """
    inbox = asyncio.Queue[Event | None]()
    hear, answer = queued(inbox), serving.Answer([serving.Choice()])
    cancels: list[Callable[[], None]] = []

    def begin() -> None:
        answer.routed = route(context, caller, model, user_of(caller, [asked]))
        # Stored at once instead of returned: if this task is cancelled, the return value of the thread is lost.
        cancels.append(serving.ask(context, caller, answer.routed, [asked], hear)[0])

    try:
        await run_in_threadpool(begin)
        watcher = asyncio.create_task(watch(request, inbox))
        try:
            while not answer.has_ended:
                event = await inbox.get()
                if event is None:
                    return Response(status_code=CLIENT_GONE)
                answer.hear(event)
        finally:
            watcher.cancel()
    except LuthierError as error:
        raise refused(error) from error
    finally:
        for cancel in cancels:
            cancel()
        await uncancelled(run_in_threadpool(_charge, context, caller, answer))
    if answer.error is not None:
        count_refused(request, answer.num_contexts)
        raise refused(answer.error)
    return JSONResponse({"input_tokens": answer.num_prompt_tokens}, headers=target_header(answer.routed))


def _charge(context: Context, caller: Caller, answer: serving.Answer) -> None:
    """Only what another server has written is usage: counting costs no pass of a model of this one."""
    if answer.num_new_tokens:
        serving.charge(context, caller, answer)
    elif answer.num_refused_tokens:
        serving.charge_refused(context, caller, answer.num_refused_tokens)
