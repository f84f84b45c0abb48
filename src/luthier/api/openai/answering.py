"""From an ask to an answer on the wire, whole or as server-sent events: the same for chat and completions.

These handlers run on the event loop and hold no thread while a model writes: many may read along at once, and the
other addresses do not wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from luthier.api.errors import ApiError, ErrorBody, as_api_error
from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotFoundError, OverlongError
from luthier.core.stream import Ended, Failed, Piece, StreamEvent, TextRequest
from luthier.service import serving
from luthier.service.context import Context
from luthier.service.fleet_answers import error_from

Event = StreamEvent
_CLIENT_GONE = 499
_CHARGING: set[asyncio.Future[None]] = set()
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer", "content": {"application/json": {}, "text/event-stream": {}}}
}
"""What the served OpenAPI document says of both."""


class Words(Protocol):
    """How an answer is written: `chat.completion` or `text_completion`."""

    def whole(self, answer: serving.Answer) -> dict[str, Any]:
        """All of it."""
        ...

    def first(self, choice: int) -> dict[str, Any] | None:
        """What comes before the first piece of a choice."""
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


@dataclass(slots=True)
class _Talk:
    """One request under way. inbox: events, and None once the client has gone.

    early: events that were taken out of it before the first byte.
    """

    context: Context
    caller: Caller
    answer: serving.Answer
    inbox: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)
    early: list[Event] = field(default_factory=list)
    cancel: Callable[[], None] = lambda: None
    is_charged: bool = False

    async def charge(self) -> None:
        """Count what was written, once, however this ends."""
        if not self.is_charged:
            self.is_charged = True
            await run_in_threadpool(serving.charge, self.context, self.caller, self.answer)


def usage_of(answer: serving.Answer) -> dict[str, int]:
    """The tokens that an answer took."""
    return {
        "prompt_tokens": answer.num_prompt_tokens,
        "completion_tokens": answer.num_new_tokens,
        "total_tokens": answer.num_prompt_tokens + answer.num_new_tokens,
    }


async def respond(
    request: Request,
    context: Context,
    caller: Caller,
    *,
    model: str,
    asked: Sequence[TextRequest],
    words: Callable[[str], Words],
    is_streamed: bool,
) -> Response:
    """Have the prompts continued and write the answer; a client that goes away is written for no more.

    words: made with the fingerprint of the model. Raises ApiError where it goes wrong before the first byte.
    """
    choices = [serving.Choice() for one in asked for _ in range(one.num_choices)]
    talk = _Talk(context, caller, serving.Answer(choices, num_prompts=len(asked)))
    loop = asyncio.get_running_loop()

    def hear(event: Event) -> None:
        talk.answer.hear(event)
        if is_streamed or not isinstance(event, Piece):
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has shut down
                loop.call_soon_threadsafe(talk.inbox.put_nowait, event)

    try:
        talk.cancel, fingerprint = await run_in_threadpool(serving.ask, context, caller, model, asked, hear)
    except LuthierError as error:
        raise _refused(error) from error
    watcher = asyncio.create_task(_watch(request, talk.inbox))
    is_going_on = False
    try:
        while not (talk.answer.has_ended or (is_streamed and talk.answer.has_started)):
            event = await talk.inbox.get()
            if event is None:
                return Response(status_code=_CLIENT_GONE)
            talk.early.append(event)
        if talk.answer.error is not None:
            raise _refused(talk.answer.error)
        is_going_on = is_streamed
    finally:
        watcher.cancel()
        if not is_going_on:
            await _leave(talk)
    if not is_streamed:
        return JSONResponse(words(fingerprint).whole(talk.answer))
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(talk, words(fingerprint)), media_type="text/event-stream", headers=headers)


async def _watch(request: Request, inbox: asyncio.Queue[Event | None]) -> None:
    """Say when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    inbox.put_nowait(None)


async def _leave(talk: _Talk) -> None:
    """Stop what may still be written, and charge what was, also where this task is being cancelled."""
    talk.cancel()
    charging = asyncio.ensure_future(talk.charge())
    _CHARGING.add(charging)  # the loop alone would not keep it alive
    charging.add_done_callback(_CHARGING.discard)
    await asyncio.shield(charging)


async def _events(talk: _Talk, words: Words) -> AsyncIterator[bytes]:
    """The answer as server-sent events; starlette ends this where the client goes away."""
    told: set[int] = set()
    num_open = len(talk.answer.choices)
    try:
        while num_open:
            event = talk.early.pop(0) if talk.early else await talk.inbox.get()
            if event is None:
                return
            if isinstance(event, Failed):
                yield _line(_as_body(_refused(error_from(event.error))), event="error")
                break
            if not isinstance(event, Piece | Ended):
                continue
            if event.choice not in told:
                told.add(event.choice)
                if (first := words.first(event.choice)) is not None:
                    yield _line(first)
            yield _line(words.piece(event) if isinstance(event, Piece) else words.end(event))
            num_open -= isinstance(event, Ended)
        await talk.charge()
        if not num_open and (last := words.usage(talk.answer)) is not None:
            yield _line(last)
        yield b"data: [DONE]\n\n"
    finally:
        await _leave(talk)


def _line(document: Mapping[str, Any], *, event: str | None = None) -> bytes:
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _as_body(error: ApiError) -> ErrorBody:
    return ErrorBody(error.message, error.type, error.param, error.code)


def _refused(error: LuthierError) -> ApiError:
    """As OpenAI names what can be wrong with an ask."""
    made = as_api_error(error)
    if isinstance(error, OverlongError):
        made.code = "context_length_exceeded"
    elif isinstance(error, NotFoundError):
        made.code, made.param = "model_not_found", "model"
    return made
