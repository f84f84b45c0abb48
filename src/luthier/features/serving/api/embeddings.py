"""/v1/embeddings: texts as vectors, of a model that runs with transformers.

The vector of a text is the mean of the model's last hidden states over its tokens, scaled to the length 1; an adapter
takes part in it. A language model was not trained for this: compare texts with one and the same model only.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, error_from
from luthier.core.stream import Embedded, EmbeddingRequest, Failed
from luthier.features.serving import service as serving
from luthier.features.serving.api.answering import TRACE_HEADER, USER_HEADER, Event, Name, refused, target_header, watch
from luthier.features.serving.completion_stream import uncancelled
from luthier.features.serving.models import Routed, route, user_of
from luthier.features.traffic.log import CLIENT_GONE, RequestRecord
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Asker, HomeContext, count_refused
from luthier.platform.http.errors import ApiError, documented

router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"])

_MAX_INPUTS: Final = 2048
Tokens = Annotated[list[int], Field(fail_fast=True, min_length=1)]


class EmbeddingBody(BaseModel):
    """What is asked. dimensions: only as many as the model has; a part of such a vector means nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=1024)
    input: (
        str
        | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=_MAX_INPUTS)]
        | Tokens
        | Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=_MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    user: Name | None = None

    def inputs(self) -> tuple[str | tuple[int, ...], ...]:
        """Each text, as text or as tokens."""
        if isinstance(self.input, str):
            return (self.input,)
        # A flat list of integers is one text as token ids; a list of lists is several texts.
        ids = [one for one in self.input if isinstance(one, int)]
        if ids:
            return (tuple(ids),)
        return tuple(one if isinstance(one, str) else tuple(one) for one in self.input if not isinstance(one, int))


@router.post("", responses=documented(404, 503), response_class=Response)
async def create_embeddings(body: EmbeddingBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """One vector a text, in the order of the texts."""
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue[Event | None]()

    def hear(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has shut down
            loop.call_soon_threadsafe(inbox.put_nowait, event)

    asked = EmbeddingRequest(inputs=body.inputs())
    named = body.user if body.user is not None else request.headers.get(USER_HEADER)
    # Vectors of two models cannot be compared: without a user, all that a key asks goes to one target.
    user = user_of(caller, (), named)
    exchange = RequestRecord(context, caller, body.model, named or "", f"embd-{uuid.uuid4().hex}")
    exchange.operation, exchange.trace_parent = "embeddings", request.headers.get(TRACE_HEADER, "")

    running = _Running(context, caller, exchange)

    def begin() -> None:
        # Kept at once, not returned: where this task is cancelled meanwhile, nobody would get what the thread returns.
        routed = running.routed = route(context, caller, body.model, user)
        running.begun(serving.ask_embeddings(context, caller, routed, asked, hear))

    try:
        await run_in_threadpool(begin)
        watcher = asyncio.create_task(watch(request, inbox))
        try:
            running.event = await inbox.get()
        finally:
            watcher.cancel()
    except LuthierError as error:
        running.failure = error
        raise refused(error) from error
    except BaseException as error:
        running.failure = error
        raise
    finally:
        # Also after success, where it does nothing: the slot of a client that has gone must become free.
        running.stop()
        await uncancelled(run_in_threadpool(running.end))
    if isinstance(running.event, Failed):
        count_refused(request, running.event.num_contexts)
        raise refused(error_from(running.event.error))
    if not isinstance(running.event, Embedded):
        return Response(status_code=CLIENT_GONE)
    return JSONResponse(_document(body, running.event), headers=target_header(running.routed))


@dataclass(slots=True)
class _Running:
    """A request under way: charged and recorded once, however it ends.

    Attributes:
        context: The home.
        caller: Who asks.
        exchange: What is recorded of it.
        routed: Who answers, once that is known.
        event: How it ended; None where the client has gone before.
        failure: What ended it before there was an event.
    """

    context: Context
    caller: Caller
    exchange: RequestRecord
    routed: Routed | None = None
    _cancel: Callable[[], None] | None = None
    _is_stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    event: Event | None = None
    failure: BaseException | None = None

    def begun(self, cancel: Callable[[], None]) -> None:
        """It is under way, and `cancel` stops it: at once, where the client has gone while it was begun."""
        with self._lock:
            self._cancel, is_stopped = cancel, self._is_stopped
        if is_stopped:
            cancel()

    def stop(self) -> None:
        """Stop it, also where it has not begun yet; nothing happens after its end."""
        with self._lock:
            self._is_stopped, cancel = True, self._cancel
        if cancel is not None:
            cancel()

    def end(self) -> None:
        event, num_tokens = self.event, 0
        try:
            if isinstance(event, Failed):
                self.failure = error_from(event.error)
                serving.charge_refused(self.context, self.caller, event.num_refused_tokens)
            elif isinstance(event, Embedded):
                num_tokens = event.num_prompt_tokens
                serving.charge_embeddings(self.context, self.caller, event, self.routed)
        finally:
            is_whole = event is not None
            self.exchange.end(self.routed, error=self.failure, is_whole=is_whole, num_prompt_tokens=num_tokens)


def _document(body: EmbeddingBody, made: Embedded) -> dict[str, Any]:
    width = len(made.vectors[0])
    if body.dimensions not in (None, width):
        message = f"dimensions={body.dimensions}; expected: {width}, as many as this model has, or none named"
        raise ApiError(400, message, param="dimensions", code="invalid_value")
    as_text = body.encoding_format == "base64"
    vectors = [_packed(vector) if as_text else list(vector) for vector in made.vectors]
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": one} for place, one in enumerate(vectors)],
        "model": body.model,
        "usage": {"prompt_tokens": made.num_prompt_tokens, "total_tokens": made.num_prompt_tokens},
    }


def _packed(vector: tuple[float, ...]) -> str:
    """Little-endian 32-bit floats in base64, as OpenAI's clients ask for by themselves."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
