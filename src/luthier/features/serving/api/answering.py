"""From an ask to an answer on the wire, whole or as server-sent events: the same for chat and completions.

These handlers run on the event loop and hold no thread while a model writes: many may read along at once, and the
other addresses do not wait for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotFoundError, OverlongError, error_from
from luthier.core.json_limits import json_utf8
from luthier.core.stream import Ended, Failed, Piece, StreamEvent, TextRequest
from luthier.features.serving import service as serving
from luthier.features.serving.completion_stream import CompletionStream
from luthier.features.serving.models import Routed, route, user_of
from luthier.features.traffic.request_record import CLIENT_GONE
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import count_refused
from luthier.platform.http.errors import ApiError, ErrorBody, as_api_error

Event = StreamEvent
TARGET_HEADER, USER_HEADER = "x-luthier-target", "x-luthier-user"
WARNING_HEADER, TRACE_HEADER = "x-luthier-warning", "traceparent"
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer", "content": {"application/json": {}, "text/event-stream": {}}}
}
"""What the served OpenAPI document says of both."""


class ResponseBuilder(Protocol):
    """How an answer is written: `chat.completion` or `text_completion`. id: that the client gets."""

    id: str

    def whole(self, answer: serving.Answer) -> dict[str, Any]:
        """All of it."""
        ...

    def first(self, event: Piece | Ended) -> dict[str, Any] | None:
        """What comes before the first piece of a choice, or its end where it has none."""
        ...

    def piece(self, piece: Piece) -> dict[str, Any]:
        """More text."""
        ...

    def end(self, ended: Ended) -> dict[str, Any]:
        """The end of a choice."""
        ...

    def usage(self, answer: serving.Answer) -> dict[str, Any] | None:
        """The last chunk; None where usage was not asked for."""
        ...


def usage_of(answer: serving.Answer) -> dict[str, Any]:
    """The tokens that an answer took; those of thoughts are among them, and told beside them where there are any."""
    usage: dict[str, Any] = {
        "prompt_tokens": answer.num_prompt_tokens,
        "completion_tokens": answer.num_new_tokens,
        "total_tokens": answer.num_prompt_tokens + answer.num_new_tokens,
    }
    if num_thinking := answer.num_thinking_tokens:
        usage["completion_tokens_details"] = {"reasoning_tokens": num_thinking}
    return usage


def target_header(routed: Routed | None) -> dict[str, str]:
    """Who has answered; a header carries ASCII alone."""
    return {} if routed is None else {TARGET_HEADER: quote(routed.target, safe=" /:@+,=")}


async def respond(
    request: Request,
    context: Context,
    caller: Caller,
    *,
    model: str,
    asked: Sequence[TextRequest],
    words: Callable[[str], ResponseBuilder],
    is_streamed: bool,
    user: str | None = None,
) -> Response:
    """Have the prompts continued and write the answer; a client that goes away is written for no more.

    words: made with the fingerprint of the model. user: whose ask it is, where the request says so.

    Raises ApiError where it goes wrong before the first byte.
    """
    named = user or request.headers.get(USER_HEADER)
    stream = CompletionStream(context, caller, asked, model=model, user=named or "", hears_pieces=is_streamed)
    stream.exchange.trace_parent = request.headers.get(TRACE_HEADER, "")
    try:
        await stream.begin(lambda: route(context, caller, model, user_of(caller, asked, named)))
    except LuthierError as error:
        raise refused(error) from error
    written = words(stream.fingerprint)
    stream.exchange.exchange_id = written.id
    # Until a response has started, nothing else notices that the client has disconnected.
    watcher, early = asyncio.create_task(stream.watch(request.receive)), list[Event]()
    is_going_on = False
    try:
        # A stream waits for its first events, too: until the first byte is sent, an error still gets its HTTP status.
        while not (stream.answer.has_ended or (is_streamed and stream.answer.has_started)):
            event = await stream.next()
            if event is None:
                return Response(status_code=CLIENT_GONE)
            early.append(event)
        if stream.answer.error is not None:
            count_refused(request, stream.answer.num_contexts)
            raise refused(stream.answer.error)
        is_going_on = is_streamed
    finally:
        watcher.cancel()
        if not is_going_on:
            await stream.leave()
    told = target_header(stream.answer.routed) | _warning_header(stream.answer.routed, asked)
    if not is_streamed:
        return JSONResponse(written.whole(stream.answer), headers=told)
    # X-Accel-Buffering: nginx otherwise collects a proxied response and would hold the pieces back.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **told}
    return StreamingResponse(_events(stream, early, written), media_type="text/event-stream", headers=headers)


def _warning_header(routed: Routed | None, asked: Sequence[TextRequest]) -> dict[str, str]:
    """What the client should know of its request: it sets the chat template otherwise than the model's training."""
    if routed is None:
        return {}
    found = next((one for request in asked if (one := serving.template_option_warning(routed.served, request))), None)
    return {} if found is None else {WARNING_HEADER: found.encode("ascii", "backslashreplace").decode()}


async def watch(request: Request, inbox: asyncio.Queue[Event | None]) -> None:
    """Say, by a None, when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    inbox.put_nowait(None)


async def _events(stream: CompletionStream, early: list[Event], words: ResponseBuilder) -> AsyncIterator[bytes]:
    """The answer as server-sent events; starlette ends this where the client goes away. early: those that came."""
    told: set[int] = set()
    num_open = len(stream.answer.choices)
    try:
        while num_open:
            event = early.pop(0) if early else await stream.next()
            if event is None:
                return
            if isinstance(event, Failed):
                # Status 200 has been sent: an error can only be an event of the stream.
                yield _line(_as_body(refused(error_from(event.error))), event="error")
                break
            if not isinstance(event, Piece | Ended):
                continue
            if event.choice not in told:
                told.add(event.choice)
                if (first := words.first(event)) is not None:
                    yield _line(first)
            yield _line(words.piece(event) if isinstance(event, Piece) else words.end(event))
            num_open -= isinstance(event, Ended)
        # Before the last chunks: a client that has read [DONE] finds this answer in its usage.
        await stream.charge()
        if not num_open and (last := words.usage(stream.answer)) is not None:
            yield _line(last)
        yield b"data: [DONE]\n\n"
    finally:
        await stream.leave()


def _line(document: Mapping[str, Any], *, event: str | None = None) -> bytes:
    name = f"event: {event}\n".encode() if event else b""
    # Tokens of one answer may come as halves of a pair that no piece completes.
    return b"%sdata: %s\n\n" % (name, json_utf8(document, separators=(",", ":")))


def _as_body(error: ApiError) -> ErrorBody:
    return ErrorBody(error.message, error.type, error.param, error.code)


def refused(error: LuthierError) -> ApiError:
    """The error, as OpenAI names what can be wrong with an ask."""
    made = as_api_error(error)
    if isinstance(error, OverlongError):
        made.code = "context_length_exceeded"
    elif isinstance(error, NotFoundError):
        made.code, made.param = "model_not_found", "model"
    # Only the process that holds the model knows what its chat template reads.
    elif error.came.startswith("reasoning_effort "):
        made.code, made.param = "invalid_value", "reasoning_effort"
    elif error.came.startswith("the template option "):
        made.code, made.param = "invalid_value", "chat_template_kwargs"
    return made
