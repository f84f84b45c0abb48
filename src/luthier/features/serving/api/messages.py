"""/v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, over the service of chat completions."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Iterator
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic_core import from_json

from luthier.core.stream import CallPiece, Ended, EndReason, Piece, TextRequest
from luthier.features.serving.api.answering import ENGINE_HEADER, WARNING_HEADER, event_line, respond, target_header
from luthier.features.serving.api.block_order import BlockOrder, Part
from luthier.features.serving.api.counting import counted
from luthier.features.serving.api.message_body import MessagesBody, PromptBody
from luthier.features.serving.api.message_turns import message_request
from luthier.features.serving.api.sent_back import INVALID_JSON
from luthier.features.serving.service import Answer, Choice
from luthier.features.traffic.log import CLIENT_GONE
from luthier.platform.http.anthropic import check_headers, error_document
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
                body.model,
                body.max_tokens,
                request.state.request_id,
                shows_thoughts=body.shows_thoughts,
                tells_edits=body.context_management is not None,
            ),
            is_streamed=bool(body.stream),
            user=body.user,
            warning=body.warning,
        )
    except ApiError as error:
        raise _renamed(error) from error
    if (warning := thinking_warning(asked, answer.headers.get(ENGINE_HEADER, BUDGET_ENGINE))) is not None:
        answer.headers[WARNING_HEADER] = "; ".join(filter(None, (answer.headers.get(WARNING_HEADER), warning)))
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
    counts: dict[str, Any] = {"input_tokens": answer.num_prompt_tokens}
    if body.context_management is not None:
        counts["context_management"] = {"original_input_tokens": answer.num_prompt_tokens}
    return JSONResponse(counts, headers=target_header(answer.routed))


def _renamed(error: ApiError) -> ApiError:
    """An error with the names of this API's parameters."""
    if error.message.startswith(_THINKING):
        error.param = "thinking"
    if (name := _NAMES.get(error.param or "")) is None:
        return error
    message = error.message.replace(error.param or "", name)
    return ApiError(error.status, message, type=error.type, param=name, code=error.code, headers=error.headers)


_Kind = Literal["thinking", "text", "tool_use"]
_NO_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_ID: Final = 100


class MessageWriter:
    """Writes one answer as Anthropic's clients read it: a message of content blocks, complete or as events of a stream.

        message_start, ping
        for each block: content_block_start, content_block_delta (thinking_delta, signature_delta, text_delta,
            input_json_delta), content_block_stop
        message_delta (stop_reason, usage), message_stop

    Source: Anthropic's API reference, "Create a Message" and "Streaming messages".

    Args:
        model: Its name in the request.
        max_tokens: The limit of the request.
        request_id: Of the answer, for errors in the middle of a stream.
        shows_thoughts: Whether thinking blocks have their text; otherwise the signature alone.
        tells_edits: Whether the answer names the edits of the conversation that were applied: always none.
    """

    def __init__(
        self, model: str, max_tokens: int, request_id: str, *, shows_thoughts: bool, tells_edits: bool = False
    ) -> None:
        self._model, self._max_tokens, self._request_id = model, max_tokens, request_id
        self._shows_thoughts = shows_thoughts
        self._edits: dict[str, Any] = {"context_management": {"applied_edits": []}} if tells_edits else {}
        self._id = f"msg_{uuid.uuid4().hex}"
        self._order = BlockOrder()
        self._open: _Kind | None = None
        self._num_blocks = 0
        self._thought: list[str] = []
        self._calls = self._has_failed = False

    @property
    def id(self) -> str:
        """Shown to the client."""
        return self._id

    def answered_by(self, fingerprint: str) -> None:
        """Nothing: a message has no fingerprint."""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The complete message."""
        (choice,) = answer.choices
        content: list[dict[str, Any]] = []
        if choice.reasoning:
            thought = choice.reasoning if self._shows_thoughts else ""
            content.append({"type": "thinking", "thinking": thought, "signature": signature_of(choice.reasoning)})
        calls = [_block_of(call) for call in choice.tool_calls()]
        # Never without a block: clients read the first one.
        if choice.text or not calls:
            content.append({"type": "text", "text": choice.text})
        stop = _stop_of(choice, bool(calls), self._max_tokens)
        return self._message([*content, *calls], answer) | stop | self._edits

    def begin(self, answer: Answer) -> Iterator[bytes]:
        """The message without content."""
        message = self._message([], answer) | _stopped(None)
        yield _event("message_start", message=message)
        yield _event("ping")

    def event(self, event: Piece | Ended) -> Iterator[bytes]:
        """More of a block, or the end of the last one."""
        for part in self._order.end() if isinstance(event, Ended) else self._order.add(event):
            yield from self._part(part)
        if isinstance(event, Ended):
            if not self._num_blocks:
                yield from self._begin("text", {"type": "text", "text": ""})
            yield from self._close()

    def _part(self, part: Part) -> Iterator[bytes]:
        if part.call is not None:
            yield from self._call(part.call)
        elif part.kind == "reasoning":
            yield from self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._thought.append(part.text)
            if self._shows_thoughts:
                yield self._delta({"type": "thinking_delta", "thinking": part.text})
        else:
            yield from self._begin("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": part.text})

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """An event `error`, the last one."""
        self._has_failed = True
        found = error_document(error.status, error.message, self._request_id, param=error.param, code=error.code)
        yield event_line(found, event="error")

    def last(self, answer: Answer) -> Iterator[bytes]:
        """Why the answer ended, and its usage; nothing after an error."""
        if self._has_failed:
            return
        (choice,) = answer.choices
        delta = _stop_of(choice, self._calls, self._max_tokens)
        yield _event("message_delta", delta=delta, usage=_usage(answer), **self._edits)
        yield _event("message_stop")

    def _message(self, content: list[dict[str, Any]], answer: Answer) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "usage": _usage(answer) | {"service_tier": "standard"},
        }

    def _call(self, call: CallPiece) -> Iterator[bytes]:
        if call.name is not None:
            # Each call is its own block.
            yield from self._close()
            self._calls = True
            block = {"type": "tool_use", "id": _tool_use_id(call.call_id), "name": call.name, "input": {}}
            yield from self._begin("tool_use", block)
        if call.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _begin(self, kind: _Kind, block: dict[str, Any]) -> Iterator[bytes]:
        """Open a block, unless one of this kind is open."""
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        yield _event("content_block_start", index=self._num_blocks, content_block=block)
        self._num_blocks += 1

    def _close(self) -> Iterator[bytes]:
        if self._open is None:
            return
        if self._open == "thinking":
            signature = signature_of("".join(self._thought))
            self._thought = []
            yield self._delta({"type": "signature_delta", "signature": signature})
        self._open = None
        yield _event("content_block_stop", index=self._num_blocks - 1)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._num_blocks - 1, delta=delta)


def signature_of(thought: str) -> str:
    """What a thinking block carries beside its text: the SHA-256 of it. Nothing depends on it here."""
    return base64.b64encode(hashlib.sha256(thought.encode(errors="surrogatepass")).digest()).decode()


def _event(kind: str, **fields: Any) -> bytes:
    return event_line({"type": kind, **fields}, event=kind)


def _usage(answer: Answer) -> dict[str, Any]:
    # Unlike in OpenAI's API, input_tokens are those that were not read from the cache (Anthropic: "Prompt caching").
    usage: dict[str, Any] = {
        "input_tokens": answer.num_prompt_tokens - answer.num_cached_tokens,
        "output_tokens": answer.num_new_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.num_cached_tokens,
    }
    if num_thinking := answer.num_thinking_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": num_thinking}
    return usage


def _stop_of(choice: Choice, has_calls: bool, max_tokens: int) -> dict[str, str | None]:
    reason: EndReason | None = choice.reason
    if reason == "length":
        # Fewer tokens than the request allows: the context is full.
        is_full = choice.num_new_tokens < max_tokens
        return _stopped("model_context_window_exceeded" if is_full else "max_tokens")
    # A stop text after a call ends the turn of the call: its result is what comes next.
    if has_calls:
        return _stopped("tool_use")
    if choice.stop_text is not None:
        return _stopped("stop_sequence", choice.stop_text)
    return _stopped("end_turn")


def _stopped(reason: str | None, sequence: str | None = None) -> dict[str, str | None]:
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None}


def _tool_use_id(call_id: str | None) -> str:
    # Other servers use characters (`functions.f:0`) that the API does not take back.
    return f"toolu_{_NO_ID.sub('_', (call_id or uuid.uuid4().hex).removeprefix('call_'))[:_MAX_ID]}"


def _block_of(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {
        "type": "tool_use",
        "id": _tool_use_id(call["id"]),
        "name": function["name"],
        "input": _input_of(function["arguments"]),
    }


def _input_of(arguments: str) -> dict[str, Any]:
    """The arguments of a call; what is complete of them where the answer was cut off, as clients read a stream."""
    for is_partial in (False, True):
        try:
            found = from_json(arguments or "{}", allow_inf_nan=False, allow_partial=is_partial)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {INVALID_JSON: arguments}
