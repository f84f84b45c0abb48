"""/v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, over the service of chat completions."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from luthier.core.stream import TextRequest
from luthier.features.serving.api.answering import ENGINE_HEADER, WARNING_HEADER, respond, target_header
from luthier.features.serving.api.counting import counted
from luthier.features.serving.api.message_answer import MessageWriter
from luthier.features.serving.api.message_body import MessagesBody, PromptBody
from luthier.features.serving.api.message_turns import message_request
from luthier.features.traffic.log import CLIENT_GONE
from luthier.platform.http.anthropic import check_headers
from luthier.platform.http.authentication import Asker, HomeContext
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
REMOTE_ENGINE: Final = "openai_http"
"""A model of another server, whose chat template is not known here."""


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
    if (warning := thinking_warning(asked, answer.headers.get(ENGINE_HEADER, BUDGET_ENGINE))) is not None:
        answer.headers.setdefault(WARNING_HEADER, warning)
    return answer


def thinking_warning(asked: TextRequest, engine: str) -> str | None:
    """What the engine that has answered does not do about the thinking of a request; None for nothing."""
    if asked.thinks is not None and engine == REMOTE_ENGINE:
        return f"the engine {engine} passes no setting for thinking on: the other server decides whether it thinks"
    if asked.thinking_budget is not None and engine != BUDGET_ENGINE:
        return f"the engine {engine} does not close a thought at budget_tokens: max_tokens alone limits it"
    return None


@router.post("/count_tokens", responses=_COUNTED, response_class=Response)
async def count_message_tokens(body: PromptBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """Count the tokens of a prompt, template and tools included, without generating anything."""
    check_headers(request.headers)
    try:
        answer = await counted(request, context, caller, body.model, message_request(body))
    except ApiError as error:
        raise _renamed(error) from error
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    return JSONResponse({"input_tokens": answer.num_prompt_tokens}, headers=target_header(answer.routed))


def _renamed(error: ApiError) -> ApiError:
    """An error with the names of this API's parameters."""
    if error.message.startswith(_THINKING):
        error.param = "thinking"
    if (name := _NAMES.get(error.param or "")) is None:
        return error
    message = error.message.replace(error.param or "", name)
    return ApiError(error.status, message, type=error.type, param=name, code=error.code, headers=error.headers)
