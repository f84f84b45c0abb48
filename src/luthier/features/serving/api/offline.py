"""Requests of the API that a job carries out: a body in, the object of the response out, without HTTP.

The same bodies, checks and response objects as those of the routes. A job borrows the engine process of the server
where that holds the model (`engine_lending`), behind live requests; else it has one of its own, of low priority, which
ends with the job.
"""

from __future__ import annotations

import contextlib
import queue
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError

from luthier.core.access import Caller
from luthier.core.errors import BusyError, LuthierError, WorkError, error_from
from luthier.core.pooling import PoolingRequest
from luthier.core.stream import Failed, Pooled, TextRequest
from luthier.features.serving import service as serving
from luthier.features.serving.api.answering import Event, ResponseBuilder, SamplingBody, refused
from luthier.features.serving.api.chat import ChatBody, chat_request, chat_response_builder, unread_warning
from luthier.features.serving.api.completions import CompletionBody, CompletionResponseBuilder, completion_requests
from luthier.features.serving.api.moderations import ID_PREFIX, Moderation, ModerationBody
from luthier.features.serving.api.pooling import EmbeddingBody, embedding_inputs, embedding_response
from luthier.features.serving.api.responses.api import refused_here
from luthier.features.serving.api.responses.body import ResponseBody, response_request
from luthier.features.serving.api.responses.prompt_items import prepared
from luthier.features.serving.api.responses.writer import ResponseObjectWriter
from luthier.features.serving.borrowed_engine import BorrowingClient
from luthier.features.serving.models import Routed, head_of, route, user_of
from luthier.ml.inference.openai.messages import usage_detail
from luthier.platform.home.context import Context
from luthier.platform.http.errors import ApiError, ErrorBody, invalid_request

Endpoint = Literal[
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations"
]  # fmt: skip
_BODIES: Final[dict[Endpoint, type[BaseModel]]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingBody,
    "/v1/responses": ResponseBody,
    "/v1/moderations": ModerationBody,
}
_POOLED: Final[tuple[Endpoint, ...]] = ("/v1/embeddings", "/v1/moderations")
_MAX_TRIES: Final = 3
_WAIT_SECONDS: Final = 1.0
_QUEUE: Final = 1024


@dataclass(frozen=True, slots=True)
class OfflineAnswer:
    """How a request ended.

    Attributes:
        status: The HTTP status that the route would give.
        body: The object of the response, or `{"error": ...}`.
        warning: What the route would say in a header of the answer; None for nothing.
    """

    status: int
    body: dict[str, Any]
    warning: str | None = None

    @property
    def is_ok(self) -> bool:
        """Whether it was answered."""
        return self.status == 200

    @property
    def usage(self) -> TokenCounts:
        """Its tokens; 0 where there are none."""
        return tokens_of(self.body)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of a request and its answer.

    Attributes:
        num_prompt: Of the prompt.
        num_new: Of the answer.
        num_cached: How many of the prompt's were known from earlier prompts.
        num_thinking: How many of the answer's are reasoning.
    """

    num_prompt: int = 0
    num_new: int = 0
    num_cached: int = 0
    num_thinking: int = 0


def tokens_of(response: Mapping[str, Any]) -> TokenCounts:
    """The tokens that the object of a response counts; 0 where it counts none."""
    usage = response.get("usage") or {}
    # Of responses they have their own names.
    names = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    num_prompt, num_new = (usage.get(name, usage.get(other, 0)) for name, other in names)
    details = ("prompt_tokens_details", "input_tokens_details"), ("completion_tokens_details", "output_tokens_details")
    num_cached, num_thinking = (
        max(usage_detail(usage, kind, name) for kind in kinds)
        for kinds, name in zip(details, ("cached_tokens", "reasoning_tokens"), strict=True)
    )
    return TokenCounts(num_prompt, num_new, num_cached, num_thinking)


def use_job_engine(context: Context) -> None:
    """Answer with the engine process of the server where that holds the model, else with one of this job's session.

    Either way live requests come first. An inference client that the context has already stays.
    """
    # The limits of the queue are for callers that can ask again; a job bounds by itself how much it asks at once.
    settings = context.settings.model_copy(update={"serving_queue": _QUEUE, "serving_queue_per_key": _QUEUE})
    context.__dict__.setdefault("inference_client", BorrowingClient(settings))


def preload(context: Context, caller: Caller, endpoint: Endpoint, model: str | None) -> None:
    """Load the model of a job while the job still reads what earlier attempts have done.

    A model that is not there is reported by the requests that name it.
    """
    if model is None:
        return
    with contextlib.suppress(LuthierError):
        served = route(context, caller, model).served
        picked = served.for_vectors if endpoint in _POOLED else served
        context.inference_client.preload(serving.as_loaded(picked))


def parsed(endpoint: Endpoint, body: Mapping[str, Any]) -> BaseModel:
    """The body of a request, checked as the route does. Raises ApiError for a wrong parameter, which it names."""
    try:
        made = _BODIES[endpoint].model_validate(body)
    except ValidationError as error:
        problems = [(("body", *one["loc"]), str(one["msg"])) for one in error.errors(include_url=False)]
        raise invalid_request(problems, dict(body)) from error
    for name in ("stream", "store"):
        if getattr(made, name, None):
            message = f"{name}: true in a request that is carried out later; expected: false, or no {name}"
            raise ApiError(400, message, param=name, code="unsupported_value")
    if getattr(made, "conversation", None) is not None:
        message = (
            "conversation in a request that is carried out later; expected: a request whose input is whole, since "
            "nothing is added to a conversation later; what to do: send its items as input"
        )
        raise ApiError(400, message, param="conversation", code="unsupported_value")
    return made


def answer_offline(
    context: Context,
    caller: Caller,
    endpoint: Endpoint,
    body: Mapping[str, Any],
    *,
    default_max_tokens: int | None = None,
) -> OfflineAnswer:
    """Carry out a request; blocks until it is answered. What is wrong with it is an answer, too.

    Args:
        context: The home.
        caller: Whose rights, budget and slots are used.
        endpoint: The route that answers such requests at once.
        body: As that route takes it.
        default_max_tokens: Of an answer without its own limit; None for the default of the home.

    Raises:
        WorkError: The engine ends again and again, or this process is ending.
    """
    most = default_max_tokens or context.settings.default_max_tokens
    try:
        made = parsed(endpoint, body)
        warning = _warning(made)
        for attempt in range(1, _MAX_TRIES + 1):
            try:
                return OfflineAnswer(200, _carried_out(context, caller, made, most), warning)
            except (BusyError, WorkError) as error:
                # An engine that has ended is started again by the next request.
                if attempt == _MAX_TRIES or not error.retry_helps:
                    raise
                # Longer each time, since loading a model again takes longer than a first retry would wait.
                time.sleep(_WAIT_SECONDS * attempt)
        # Unreachable; it shows the type checker that there is no other way out.
        raise AssertionError("the loop returns or raises")
    except ApiError as error:
        return _failed(error)
    except WorkError as error:
        if error.retry_helps:
            raise
        return _failed(refused(error))
    except LuthierError as error:
        return _failed(refused(error))


def _warning(body: BaseModel) -> str | None:
    if isinstance(body, ChatBody):
        return unread_warning(body.messages)
    return body.warning if isinstance(body, ResponseBody) else None


def _carried_out(context: Context, caller: Caller, body: BaseModel, default_max_tokens: int) -> dict[str, Any]:
    if isinstance(body, EmbeddingBody):
        routed = route(context, caller, body.model, user_of(caller, (), body.user))
        made = _pooled(context, caller, routed, embedding_inputs(body, routed.served, head_of(routed.served)))
        return embedding_response(body, made)
    if isinstance(body, ModerationBody):
        asked_for = Moderation(context, caller, body)
        routed = asked_for.target()
        head = head_of(routed.served)
        made = _pooled(context, caller, routed, asked_for.request(head))
        return asked_for.document(f"{ID_PREFIX}-{uuid.uuid4().hex}", head, made)
    if isinstance(body, ResponseBody):
        return _responded(context, caller, body, default_max_tokens)
    assert isinstance(body, SamplingBody)
    asked = [chat_request(body, default_max_tokens)] if isinstance(body, ChatBody) else []
    asked += completion_requests(body) if isinstance(body, CompletionBody) else []
    return _written(context, caller, body, asked)


def _written(context: Context, caller: Caller, body: SamplingBody, asked: list[TextRequest]) -> dict[str, Any]:
    heard, fingerprint = serving.complete(context, caller, body.model, asked, body.end_user())
    words: ResponseBuilder
    if isinstance(body, ChatBody):
        words = chat_response_builder(body, fingerprint)
    else:
        assert isinstance(body, CompletionBody)
        words = CompletionResponseBuilder(body.model, fingerprint, False, body.logprobs is not None)
    return words.whole(heard)


def _responded(context: Context, caller: Caller, body: ResponseBody, default_max_tokens: int) -> dict[str, Any]:
    asked = response_request(body, prepared(context, caller, body).messages, default_max_tokens)
    try:
        heard, _ = serving.complete(context, caller, body.model, [asked], body.end_user())
    except LuthierError as error:
        # What makes the job try again stays as it is.
        if isinstance(error, BusyError | WorkError):
            raise
        raise refused_here(error) from error
    return ResponseObjectWriter(body, is_stored=False).whole(heard)


def _pooled(context: Context, caller: Caller, routed: Routed, request: PoolingRequest) -> Pooled:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    serving.ask_pooling(context, caller, routed, request, events.put)
    event = events.get()
    if isinstance(event, Failed):
        serving.charge_refused(context, caller, event.num_refused_tokens)
        raise error_from(event.error)
    assert isinstance(event, Pooled)
    serving.charge_pooled(context, caller, event, routed)
    return event


def _failed(error: ApiError) -> OfflineAnswer:
    return OfflineAnswer(error.status, dict(ErrorBody(error.message, error.type, error.param, error.code)))
