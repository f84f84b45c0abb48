"""/v1/embeddings, /v1/classify and /v1/score: single-pass inference without text generation.

Requests and responses follow OpenAI (embeddings) and vLLM (classify, score), with additional fields.
Models run with transformers.

The embedding of a text is the mean of the model's last hidden states over its tokens, including any adapter, normalised
to length 1. Language models are not trained for this: compare only embeddings of the same model. Models tuned with
`objective: {name: embed}` are; classes, numbers and relevance need a model with such a head.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from luthier.core.access import Caller
from luthier.core.conversation import Conversation, Message
from luthier.core.errors import LuthierError, RequestError, error_from
from luthier.core.frozen_model import StrictModel
from luthier.core.pooling import PoolingRequest
from luthier.core.stream import Failed, Pooled, Served
from luthier.core.task_head import TaskHead
from luthier.features.serving import service as serving
from luthier.features.serving.api.answering import (
    TRACE_HEADER,
    USER_HEADER,
    WARNING_HEADER,
    Event,
    Name,
    refused,
    target_header,
    watch,
)
from luthier.features.serving.completion_stream import queued, uncancelled
from luthier.features.serving.head_answers import classified, embedding_request, prompt_of, ranking_request
from luthier.features.serving.models import Routed, head_of, route, user_of
from luthier.features.traffic.log import CLIENT_GONE, Operation, RequestRecord
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Asker, HomeContext, count_refused
from luthier.platform.http.errors import ApiError, documented

router = APIRouter(prefix="/v1", tags=["embeddings"])

MAX_INPUTS: Final = 2048
_SHOWN_CUT: Final = 20
Tokens = Annotated[list[int], Field(fail_fast=True, min_length=1)]
# Fails at the first wrong element: a million errors would block the event loop.
Texts = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_INPUTS)]
Inputs = str | Texts | Tokens | Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=MAX_INPUTS)]


class PoolingBody(StrictModel):
    """Common fields. Unknown keys are rejected, so that no option is silently ignored.

    Attributes:
        model: By its name.
        user: The end user; selects the target of a deployment.
    """

    model: str = Field(min_length=1, max_length=1024)
    user: Name | None = None


class EmbeddingBody(PoolingBody):
    """What is asked.

    Attributes:
        input: A text, several, or token ids of one or several, which are unchanged.
        encoding_format: `base64` packs float32, little-endian.
        dimensions: One of the lengths that the model was trained for; without a head only the full width, since a part
            of such a vector is meaningless.
        input_type: The training prompt to prepend to each text, `document` by default, for embedding models.
    """

    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    input_type: Literal["query", "document"] | None = None


class ClassifyMessage(StrictModel):
    """One turn of a prompt."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class ClassifyBody(PoolingBody):
    """The request body: texts, each as a single user turn, or the turns of one prompt, as in training rows.

    Attributes:
        input: Texts, or token ids; None for `messages`.
        messages: The turns of one prompt; None for `input`.
    """

    input: Inputs | None = None
    messages: Annotated[list[ClassifyMessage], Field(fail_fast=True, min_length=1, max_length=MAX_INPUTS)] | None = None


class ScoreBody(PoolingBody):
    """The request body: one query with one or more documents, or as many queries as documents, in pairs.

    Attributes:
        text_1: The query, or as many as there are documents.
        text_2: The document, or several.
    """

    text_1: str | Texts
    text_2: str | Texts


ANSWERS: Final = documented(404, 503)


@router.post("/embeddings", responses=ANSWERS, response_class=Response)
async def create_embeddings(body: EmbeddingBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """One vector per text, in order."""
    return await respond_pooled(
        request,
        context,
        caller,
        body,
        "embeddings",
        lambda served, head: embedding_inputs(body, served, head),
        lambda run: embedding_response(body, run.pooled),
        prefix="embd",
    )


def embedding_inputs(body: EmbeddingBody, served: Served, head: TaskHead | None) -> PoolingRequest:
    """The request for a model with this head, or without one. Raises RequestError for what the model does not do."""
    is_query = None if body.input_type is None else body.input_type == "query"
    return embedding_request(served, head, _inputs(body.input), body.dimensions, is_query=is_query)


@router.post("/classify", responses=ANSWERS, response_class=Response)
async def create_classification(body: ClassifyBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """The class of each input with the probabilities of all classes, in class order; or its number."""
    if (body.input is None) == (body.messages is None):
        raise ApiError(400, "expected: exactly one of input and messages", param="input", code="invalid_value")

    def made(_: Served, head: TaskHead | None) -> PoolingRequest:
        kind: Literal["classify", "regress"] = "regress" if head is not None and head.kind == "regress" else "classify"
        if body.messages is not None:
            turns = tuple(Message(role=one.role, content=one.content) for one in body.messages)
            return PoolingRequest(conversations=(Conversation(messages=turns),), kind=kind)
        # Inputs are all texts or all token ids. Texts become user turns, as the rows that the head was trained on.
        inputs = _inputs(body.input or "")
        ids = tuple(one for one in inputs if not isinstance(one, str))
        if ids:
            return PoolingRequest(inputs=ids, kind=kind)
        return PoolingRequest(conversations=tuple(prompt_of(str(one)) for one in inputs), kind=kind)

    return await respond_pooled(request, context, caller, body, "classify", made, _classes)


@router.post("/score", responses=ANSWERS, response_class=Response)
async def create_score(body: ScoreBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """The relevance of each document (text_2) to its query (text_1), 0 to 1."""
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(first) == 1:
        # One query for all documents; also right where there is one document.
        first = first * len(second)
    if len(first) != len(second):
        message = (
            f"{len(first)} texts in text_1 and {len(second)} in text_2; expected: one in text_1, or as many in both"
        )
        raise ApiError(400, message, param="text_1", code="invalid_value")
    pairs = list(zip(first, second, strict=True))
    return await respond_pooled(
        request, context, caller, body, "score", lambda _, head: ranking_request(head, pairs), _scores
    )


async def respond_pooled(
    request: Request,
    context: Context,
    caller: Caller,
    body: PoolingBody,
    operation: Operation,
    made: Callable[[Served, TaskHead | None], PoolingRequest],
    shown: Callable[[PooledRun], dict[str, Any]],
    *,
    find: Callable[[], Routed] | None = None,
    prefix: str | None = None,
    cut: Callable[[Pooled], str] | None = None,
) -> Response:
    """Process inputs and respond; a disconnected client cancels the request.

    Args:
        request: The client's HTTP request.
        context: The home.
        caller: The caller.
        body: The request body.
        operation: Its name in the traffic log.
        made: Creates the request for the model and its head.
        shown: Creates the response; its errors are recorded as rejections.
        find: Finds the target; None routes the name in the body.
        prefix: Of the id; None for the operation.
        cut: Says which inputs were cut, and to what; None for the longest text that the model reads.

    Raises:
        ApiError: The request is rejected or fails.
    """
    inbox = asyncio.Queue[Event | None]()
    hear, named = queued(inbox), body.user if body.user is not None else request.headers.get(USER_HEADER)
    user = user_of(caller, (), named)  # without one, a key gets one target: outputs of two cannot be compared
    record = RequestRecord(context, caller, body.model, named or "", f"{prefix or operation}-{uuid.uuid4().hex}")
    record.operation, record.trace_parent = operation, request.headers.get(TRACE_HEADER, "")
    running = PooledRun(context, caller, record)

    def begin() -> None:
        # Stored at once instead of returned: if this task is cancelled, the return value of the thread is lost.
        routed = running.routed = route(context, caller, body.model, user) if find is None else find()
        running.head = head_of(routed.served)
        running.begun(serving.ask_pooling(context, caller, routed, made(routed.served, running.head), hear))

    try:
        await run_in_threadpool(begin)
        watcher = asyncio.create_task(watch(request, inbox))
        try:
            running.event = await inbox.get()
        finally:
            watcher.cancel()
        document = shown(running) if isinstance(running.event, Pooled) else None
    except LuthierError as error:
        running.failure = error
        raise refused(error) from error
    except BaseException as error:
        running.failure = error
        raise
    finally:
        # Also after success, where it has no effect: the slot of a disconnected client must be released.
        running.stop()
        await uncancelled(run_in_threadpool(running.end))
    if isinstance(running.event, Failed):
        count_refused(request, running.event.num_contexts)
        raise refused(error_from(running.event.error))
    if document is None:
        return Response(status_code=CLIENT_GONE)
    return JSONResponse(document, headers=target_header(running.routed) | _cut_header(running.pooled, cut or _cut_note))


def _cut_header(made: Pooled, note: Callable[[Pooled], str]) -> dict[str, str]:
    """A warning where texts were cut."""
    return {WARNING_HEADER: note(made)} if made.truncated else {}


def _cut_note(made: Pooled) -> str:
    many = f"{len(made.truncated):,} of {len(made.outputs):,} inputs"
    return f"{many} cut to the longest text that this model reads (index {shown_indices(made)})"


def shown_indices(made: Pooled) -> str:
    """Which inputs were cut, by their index: the first of many."""
    return ", ".join(map(str, made.truncated[:_SHOWN_CUT])) + (", ..." if len(made.truncated) > _SHOWN_CUT else "")


@dataclass(slots=True)
class PooledRun:
    """A running request: charged and recorded once, however it ends.

    Attributes:
        context: The home.
        caller: Who asks.
        exchange: Its record in the traffic log.
        routed: The answering target, once known.
        head: The task head of that model; None if it has none.
        event: The final event; None if the client disconnected before.
        failure: The error that ended it before any event.
    """

    context: Context
    caller: Caller
    exchange: RequestRecord
    routed: Routed | None = None
    head: TaskHead | None = None
    _cancel: Callable[[], None] | None = None
    _is_stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    event: Event | None = None
    failure: BaseException | None = None

    def begun(self, cancel: Callable[[], None]) -> None:
        """Record that it is running and that `cancel` stops it; cancels at once if the client is already gone."""
        with self._lock:
            self._cancel, is_stopped = cancel, self._is_stopped
        if is_stopped:
            cancel()

    def stop(self) -> None:
        """Stop it, also before it has started; no effect after its end."""
        with self._lock:
            self._is_stopped, cancel = True, self._cancel
        if cancel is not None:
            cancel()

    @property
    def pooled(self) -> Pooled:
        """The result; only for a successful request."""
        assert isinstance(self.event, Pooled)
        return self.event

    def end(self) -> None:
        event, num_tokens = self.event, 0
        try:
            if isinstance(event, Failed):
                self.failure = error_from(event.error)
                serving.charge_refused(self.context, self.caller, event.num_refused_tokens)
            elif isinstance(event, Pooled):
                num_tokens = event.num_prompt_tokens
                serving.charge_pooled(self.context, self.caller, event, self.routed)
        finally:
            is_whole = event is not None
            self.exchange.end(self.routed, error=self.failure, is_whole=is_whole, num_prompt_tokens=num_tokens)


def _inputs(given: Inputs) -> tuple[str | tuple[int, ...], ...]:
    """Each text, as text or as tokens."""
    if isinstance(given, str):
        return (given,)
    # A flat list of integers is one text as token ids; a list of lists is several texts.
    ids = [one for one in given if isinstance(one, int)]
    if ids:
        return (tuple(ids),)
    return tuple(one if isinstance(one, str) else tuple(one) for one in given if not isinstance(one, int))


def usage_of(made: Pooled) -> dict[str, int]:
    """The tokens that a request read."""
    return {"prompt_tokens": made.num_prompt_tokens, "total_tokens": made.num_prompt_tokens}


def embedding_response(body: EmbeddingBody, made: Pooled) -> dict[str, Any]:
    """The object of the response.

    Raises:
        RequestError: Dimensions that the model does not have.
    """
    width = len(made.outputs[0])
    if body.dimensions not in (None, width):
        raise RequestError(
            f"dimensions={body.dimensions}",
            expected=f"{width}, as many as this model has: it was not trained for shorter vectors",
            do="leave dimensions out",
        )
    as_text = body.encoding_format == "base64"
    vectors = [_packed(vector) if as_text else list(vector) for vector in made.outputs]
    found = {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": one} for place, one in enumerate(vectors)],
        "model": body.model,
        "usage": usage_of(made),
    }
    # Only where there are some: clients of OpenAI know no such field.
    return found | ({"truncated": list(made.truncated)} if made.truncated else {})


def _classes(run: PooledRun) -> dict[str, Any]:
    assert run.head is not None
    data = [{"index": place} | classified(run.head, one) for place, one in enumerate(run.pooled.outputs)]
    return _listed(run, data) | {"classes": list(run.head.labels)}


def _scores(run: PooledRun) -> dict[str, Any]:
    data = [{"index": place, "object": "score", "score": one[0]} for place, one in enumerate(run.pooled.outputs)]
    return _listed(run, data)


def _listed(run: PooledRun, data: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": run.exchange.exchange_id,
        "object": "list",
        "created": int(time.time()),
        "model": run.exchange.model,
        "data": data,
        "usage": usage_of(run.pooled),
    }


def _packed(vector: tuple[float, ...]) -> str:
    """Little-endian 32-bit floats in base64, which OpenAI's clients request by default."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
