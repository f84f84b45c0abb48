"""Shared by chat, completions and embeddings: sampling parameters, and complete or streamed responses.

Parameters that this server does not support are rejected. The handlers run on the event loop and hold no thread during
generation, so many streams may be open at once without blocking other routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Protocol
from urllib.parse import quote

from anyio import to_thread
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotFoundError, OverlongError, error_from
from luthier.core.frozen_model import StrictModel
from luthier.core.json_limits import json_utf8
from luthier.core.stream import MAX_CHOICES, Ended, Failed, Piece, Sampling, StreamEvent, TextRequest
from luthier.features.serving import service as serving
from luthier.features.serving.completion_stream import CompletionStream
from luthier.features.serving.models import Routed, route, user_of
from luthier.features.serving.service import new_seed
from luthier.features.traffic.log import CLIENT_GONE
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import count_refused
from luthier.platform.http.errors import ApiError, ErrorBody, as_api_error


def _refuse(value: Any) -> None:
    if value is not None:
        raise ValueError("this server does not support this parameter: leave it out")


def _refuse_unless_off(value: Any) -> None:
    if value is not None and value is not False:
        raise ValueError("this server does not do this: leave it out, or send false")


def _refuse_verbosity(value: Any) -> Any:
    if value not in (None, "medium"):
        raise ValueError("answers are as long as the model writes them: send medium, the default, or leave it out")
    return value


def _refuse_tier(value: Any) -> Any:
    if value not in (None, "auto", "default"):
        raise ValueError("this server has one tier, auto or default: leave it out")
    return value


Unsupported = Annotated[None, BeforeValidator(_refuse)]
"""An unsupported parameter of OpenAI's API. Even an empty value requests it, as in `web_search_options: {}`."""
OffOnly = Annotated[None, BeforeValidator(_refuse_unless_off)]
"""An unsupported switch of OpenAI's API: only `false` is accepted."""
OneTier = Annotated[str | None, BeforeValidator(_refuse_tier)]
"""Other service tiers are rejected: there are none."""
Verbosity = Annotated[str | None, BeforeValidator(_refuse_verbosity)]
"""The default alone: no other length can be asked for."""
Name = Annotated[str, Field(max_length=1024)]
"""The id of a user or a cache; it does not change answers."""


class PromptCacheBreakpoint(StrictModel):
    """Where a prompt may be cached up to; it could only make an answer faster.

    Attributes:
        mode: Always `explicit`.
        ttl: How long at least.
    """

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


CacheMark = Annotated[PromptCacheBreakpoint | None, Field(exclude=True)]
"""On a part of a prompt: accepted, and neither read nor stored."""
TopK = Annotated[int | None, Field(ge=-1, le=1_000_000)]
"""Of vLLM and others; -1 and 0 for all tokens."""
MinP = Annotated[float | None, Field(ge=0, le=1)]
"""Of vLLM and others."""
Bias = Annotated[float, Field(strict=False, ge=-100, le=100)]
MAX_BIASES: Final = 1024


class StreamOptions(StrictModel):
    """include_usage: whether a last chunk reports the token usage."""

    include_usage: bool | None = None
    include_obfuscation: OffOnly = None


class SamplingBody(BaseModel):
    """Common fields. Unknown keys are rejected, so that no option is silently ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=1024)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: TopK = None
    min_p: MinP = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    user: Name | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def end_user(self) -> str | None:
        """The end user, if the request names one; selects the target of a deployment."""
        # `safety_identifier` is OpenAI's newer name for it; chat alone has the field.
        named: str | None = self.user or getattr(self, "safety_identifier", None)
        return named

    def sampling(self) -> Sampling:
        """Sampling parameters."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            # A random seed: without one, OpenAI's API samples differently each time.
            seed=new_seed() if self.seed is None else self.seed,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=self._biases(),
        )

    def _biases(self) -> tuple[tuple[int, float], ...]:
        given = self.logit_bias or {}
        # isdigit alone accepts digits of other scripts; ten or more digits are not a token id and would overflow.
        if wrong := next((key for key in given if not (key.isascii() and key.isdigit() and len(key) < 10)), None):
            message = f"Invalid logit_bias: {wrong!r} is not a token id; expected: ids of the model's own tokenizer"
            raise ApiError(400, message, param="logit_bias", code="invalid_value")
        return tuple((int(key), value) for key, value in given.items())

    def stops(self) -> tuple[str, ...]:
        """The stop texts.

        Raises:
            ApiError: More than four, an empty one, or a very long one.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > 4 or not all(0 < len(stop) <= 1024 for stop in stops):
            raise ApiError(
                400,
                "Invalid 'stop': expected up to 4 texts of 1 to 1024 characters",
                param="stop",
                code="invalid_value",
            )
        return stops


Event = StreamEvent
TARGET_HEADER, USER_HEADER = "x-luthier-target", "x-luthier-user"
WARNING_HEADER, TRACE_HEADER = "x-luthier-warning", "traceparent"
STRICT_ENGINE: Final = "transformers"
"""The engine whose optional calls match the schemas of strict tools."""
ENGINE_HEADER: Final = "x-luthier-engine"
"""Of a request: the engine that must answer it; of an answer: the one that did."""
Keep = Callable[[dict[str, Any], str], None]
"""(response, end user) -> None: stores a complete response."""
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer", "content": {"application/json": {}, "text/event-stream": {}}}
}
"""The response documentation in the OpenAPI document."""


class ResponseBuilder(Protocol):
    """Formats an answer as `chat.completion` or `text_completion`. id: shown to the client."""

    id: str
    fingerprint: str

    def whole(self, answer: serving.Answer) -> dict[str, Any]:
        """The complete response."""
        ...

    def first(self, event: Piece | Ended) -> dict[str, Any] | None:
        """The chunk before all others of a choice, by its first piece, or its end if it has no piece."""
        ...

    def piece(self, piece: Piece) -> dict[str, Any]:
        """More text."""
        ...

    def end(self, ended: Ended) -> dict[str, Any]:
        """The end of a choice."""
        ...

    def usage(self, answer: serving.Answer) -> dict[str, Any] | None:
        """The last chunk; None if usage was not requested."""
        ...


class ResponseWriter(Protocol):
    """Formats one answer, as an object or as the lines of an event stream. id: shown to the client."""

    @property
    def id(self) -> str:
        """Shown to the client."""
        ...

    def answered_by(self, fingerprint: str) -> None:
        """What has answered, where it is another engine than the request was sent to."""
        ...

    def whole(self, answer: serving.Answer) -> dict[str, Any]:
        """The complete response; of a stream, the one that the stream has shown."""
        ...

    def begin(self, answer: serving.Answer) -> Iterator[bytes]:
        """The lines before all others.

        Args:
            answer: So far; the tokens of the prompt are known.
        """
        ...

    def event(self, event: Piece | Ended) -> Iterator[bytes]:
        """More text, or the end of a choice."""
        ...

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """An error after the first byte."""
        ...

    def last(self, answer: serving.Answer) -> Iterator[bytes]:
        """The lines after all others, also after an error."""
        ...


class ChunkWriter:
    """Streams an answer as the chunks of chat and text completions.

    Args:
        words: Formats the chunks.
    """

    def __init__(self, words: ResponseBuilder) -> None:
        self._words, self._num_begun = words, 0

    @property
    def id(self) -> str:
        """Shown to the client."""
        return self._words.id

    def answered_by(self, fingerprint: str) -> None:
        """What has answered."""
        self._words.fingerprint = fingerprint

    def whole(self, answer: serving.Answer) -> dict[str, Any]:
        """The complete response."""
        return self._words.whole(answer)

    def begin(self, answer: serving.Answer) -> Iterator[bytes]:  # noqa: ARG002
        """Nothing: the first chunk belongs to a choice."""
        yield from ()

    def event(self, event: Piece | Ended) -> Iterator[bytes]:
        """The chunks of an event."""
        # Choices begin in their order, as OpenAI's do, though the engine may write a later one first: its clients put
        # the first chunk of each into a list, by its index.
        for number in range(self._num_begun, event.choice + 1):
            first = self._words.first(event if number == event.choice else Piece(choice=number, text=""))
            if first is not None:
                yield event_line(first)
        self._num_begun = max(self._num_begun, event.choice + 1)
        yield event_line(self._words.piece(event) if isinstance(event, Piece) else self._words.end(event))

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """An event `error`."""
        yield event_line(ErrorBody(error.message, error.type, error.param, error.code), event="error")

    def last(self, answer: serving.Answer) -> Iterator[bytes]:
        """The usage of a complete answer, and the end."""
        is_complete = all(choice.reason is not None for choice in answer.choices)
        if is_complete and (usage := self._words.usage(answer)) is not None:
            yield event_line(usage)
        yield b"data: [DONE]\n\n"


def usage_of(answer: serving.Answer) -> dict[str, Any]:
    """The token usage of an answer; cached tokens of the prompt and reasoning tokens are included and listed."""
    return {
        "prompt_tokens": answer.num_prompt_tokens,
        "completion_tokens": answer.num_new_tokens,
        "total_tokens": answer.num_prompt_tokens + answer.num_new_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.num_cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": answer.num_thinking_tokens},
    }


def target_header(routed: Routed | None) -> dict[str, str]:
    """The answering target; headers are limited to ASCII."""
    return {} if routed is None else {TARGET_HEADER: quote(routed.target, safe=" /:@+,=")}


async def respond(
    request: Request,
    context: Context,
    caller: Caller,
    *,
    model: str,
    asked: Sequence[TextRequest],
    words: Callable[[str], ResponseWriter],
    is_streamed: bool,
    user: str | None = None,
    keep: Keep | None = None,
    warning: str | None = None,
) -> Response:
    """Generate answers to the prompts and respond; a disconnected client cancels the request.

    Args:
        request: Its headers may name a user, an engine and a trace.
        context: The home.
        caller: Whose models may be asked.
        model: The name in the request.
        asked: One request for each answer.
        words: Makes the writer of the response, from the fingerprint of the model.
        is_streamed: Whether the client reads events in place of one document.
        user: The end user, if the body names one.
        keep: Stores the complete response before its last byte is sent.
        warning: About the request, for a header of the answer.

    Raises:
        ApiError: The request fails before the first byte.
    """
    named = user or request.headers.get(USER_HEADER)
    engine = request.headers.get(ENGINE_HEADER)
    stream = CompletionStream(
        context, caller, asked, model=model, user=named or "", engine=engine, hears_pieces=is_streamed
    )
    stream.exchange.trace_parent = request.headers.get(TRACE_HEADER, "")
    try:
        await stream.begin(lambda: route(context, caller, model, user_of(caller, asked, named)))
    except LuthierError as error:
        raise refused(error) from error
    written = words(stream.answering.fingerprint)
    stream.exchange.exchange_id = written.id
    # Until a response has started, nothing else detects a disconnected client.
    watcher, early = asyncio.create_task(stream.watch(request.receive)), list[Event]()
    is_going_on = False
    try:
        # A stream also waits for its first events: until the first byte is sent, an error can still set the HTTP
        # status.
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
    # Another engine has answered than the request was sent to, where that failed before it began.
    written.answered_by(stream.answering.fingerprint)
    told = target_header(stream.answer.routed) | {ENGINE_HEADER: stream.answering.engine}
    told |= _warning_header(stream.answer.routed, asked, stream.answering.engine, warning)
    if not is_streamed:
        whole = written.whole(stream.answer)
        if keep is not None:
            await to_thread.run_sync(keep, whole, named or "")
        return JSONResponse(whole, headers=told)
    # X-Accel-Buffering: nginx otherwise buffers proxied responses and would delay the pieces.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **told}
    events = _events(stream, early, written, None if keep is None else lambda whole: keep(whole, named or ""))
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def strict_warning(asked: Sequence[TextRequest], engine: str) -> str | None:
    """What the engine that has answered does not do about strict tools; None for nothing."""
    if engine == STRICT_ENGINE or not any(request.strict_tools for request in asked):
        return None
    return f"the engine {engine} does not hold optional calls to the schemas of strict tools, only required ones"


def _warning_header(
    routed: Routed | None, asked: Sequence[TextRequest], engine: str, warning: str | None
) -> dict[str, str]:
    """Warnings for the client: its template options differ from those used in training, or strict calls are not."""
    of_answer = None
    if routed is not None:
        options = (serving.template_option_warning(routed.served, request) for request in asked)
        of_answer = next(filter(None, options), None) or strict_warning(asked, engine)
    found = "; ".join(one for one in (warning, of_answer) if one is not None)
    return {WARNING_HEADER: found.encode("ascii", "backslashreplace").decode()} if found else {}


async def watch(request: Request, inbox: asyncio.Queue[Event | None]) -> None:
    """Report, by a None, that the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    inbox.put_nowait(None)


async def _events(
    stream: CompletionStream,
    early: list[Event],
    words: ResponseWriter,
    keep: Callable[[dict[str, Any]], None] | None,
) -> AsyncIterator[bytes]:
    """The answer as server-sent events; starlette closes this on disconnect. early: events received so far."""
    num_open = len(stream.answer.choices)
    try:
        for line in words.begin(stream.answer):
            yield line
        while num_open:
            event = early.pop(0) if early else await stream.next()
            if event is None:
                return
            if isinstance(event, Failed):
                # Status 200 has been sent: an error can only be an event of the stream.
                for line in words.failed(refused(error_from(event.error))):
                    yield line
                break
            if isinstance(event, Piece | Ended):
                for line in words.event(event):
                    yield line
                num_open -= isinstance(event, Ended)
        # Before the last chunks: once a client has read them, its usage includes this answer.
        await stream.charge()
        if not num_open and keep is not None:
            try:
                await to_thread.run_sync(keep, words.whole(stream.answer))
            except LuthierError as error:  # the client asked for it to be stored, and must know that it is not
                for line in words.failed(refused(error)):
                    yield line
        for line in words.last(stream.answer):
            yield line
    finally:
        await stream.leave()


def event_line(document: Mapping[str, Any], *, event: str | None = None) -> bytes:
    """A server-sent event.

    Args:
        document: Its data.
        event: Its name; None for none.
    """
    name = f"event: {event}\n".encode() if event else b""
    # Tokens of an answer may contain lone surrogates that no piece completes.
    return b"%sdata: %s\n\n" % (name, json_utf8(document, separators=(",", ":")))


def refused(error: LuthierError) -> ApiError:
    """The error in OpenAI's format."""
    made = as_api_error(error)
    if isinstance(error, OverlongError):
        made.code = "context_length_exceeded"
        if error.num_tokens and error.most_tokens:
            # The engine's own words name options that a request does not have.
            made.message = (
                f"the prompt has {error.num_tokens:,} tokens or more; expected: fewer than {error.most_tokens:,}, the "
                "context of the model, so that an answer fits; what to do: shorten the prompt"
            )
    elif isinstance(error, NotFoundError):
        made.code, made.param = "model_not_found", "model"
    elif error.came.startswith("dimensions="):
        made.code, made.param = "invalid_value", "dimensions"
    # Only the engine process knows which options its chat template reads.
    elif error.came.startswith("reasoning_effort "):
        made.code, made.param = "invalid_value", "reasoning_effort"
    elif error.came.startswith("the template option "):
        made.code, made.param = "invalid_value", "chat_template_kwargs"
    return made
