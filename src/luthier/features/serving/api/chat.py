"""/v1/chat/completions: a model answers a conversation, whole or as it writes."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from luthier.core.conversation import Conversation, Message
from luthier.core.json_limits import fault_of_text
from luthier.core.records.fine_tuning import Metadata
from luthier.core.stream import TextRequest
from luthier.core.text.json_schema import check_schema
from luthier.features.serving.api.answering import ANSWERS, respond
from luthier.features.serving.api.chat_format import ChatResponseBuilder
from luthier.features.serving.api.sampling import Name, OffOnly, OneTier, SamplingBody, Unsupported
from luthier.features.serving.api.tools import (
    MAX_TOOLS,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
    schema_of,
    tool_wishes,
)
from luthier.platform.http.authentication import Asker, HomeContext
from luthier.platform.http.errors import ApiError
from luthier.platform.http.middleware.json_body import refusal

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])

_MAX_MESSAGES: Final = 2048
_STRICT: Final = ConfigDict(extra="forbid", strict=True)
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_OptionName = Annotated[str, Field(min_length=1, max_length=64)]
_OptionValue = bool | int | float | Annotated[str, Field(max_length=1024)]
TemplateOptions = Annotated[dict[_OptionName, _OptionValue], Field(max_length=32)]
"""Options of the model's chat template by name; which ones there are, the model's template says."""


class TextPart(BaseModel):
    """A part of a message; text is the only kind that models here read."""

    model_config = _STRICT

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn; what the client has got as an answer may be sent back as it came."""

    model_config = _STRICT

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    audio: Unsupported = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    function_call: Unsupported = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    def text(self) -> str | None:
        """The content as one text; None where there is none."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        # OpenAI's answers carry a refusal in place of content, and clients send them back as they came.
        return self.content if self.content is not None else self.refusal

    @property
    def thought(self) -> str | None:
        """What an assistant has thought before the answer, under either name that servers have for it."""
        return self.reasoning_content or self.reasoning or None


class PromptCache(BaseModel):
    """How the hosted service keeps prompts; here their keys and values go with the answer, whatever it says."""

    model_config = _STRICT

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class Prediction(BaseModel):
    """What much of the answer is expected to be: it could only make the answer faster."""

    model_config = _STRICT

    type: Literal["content"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]


class ChatBody(SamplingBody):
    """What is asked. The table in docs/server.md says of each parameter what is done with it; a test holds it."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=_MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    function_call: Literal["none", "auto"] | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions | None = None

    metadata: Metadata | None = None
    store: OffOnly = None
    service_tier: OneTier = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: PromptCache | None = None
    prediction: Prediction | None = None

    functions: Unsupported = None
    audio: Unsupported = None
    moderation: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None


@router.post("", responses=ANSWERS, response_class=Response)
async def create_chat_completion(body: ChatBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """The next turn of a conversation; with `stream` as server-sent events."""
    # None differs from a number: only a limit of the client covers the thought.
    limit = _max_tokens(body)
    asked = TextRequest(
        conversation=_conversation(body),
        sampling=body.sampling(),
        max_new_tokens=limit or context.settings.default_max_tokens,
        # A limit of the client covers thought and answer together, as OpenAI counts both.
        max_thinking_tokens=None if limit is None else 0,
        template_options=body.chat_template_kwargs or {},
        reasoning_effort=body.reasoning_effort,
        stop=body.stops(),
        num_choices=body.n or 1,
        num_top=_num_top(body),
        json_schema=_schema(body),
        # OpenAI's default is true, also for an explicit null.
        calls_in_parallel=body.parallel_tool_calls is not False,
        **tool_wishes(body.tools, body.tool_choice),
    )
    return await respond(
        request,
        context,
        caller,
        model=body.model,
        asked=[asked],
        words=lambda fingerprint: ChatResponseBuilder(body.model, fingerprint, body.tells_usage, bool(body.logprobs)),
        is_streamed=bool(body.stream),
        user=body.end_user(),
    )


def _schema(body: ChatBody) -> dict[str, Any] | None:
    """What the answer has to keep to. Raises UnsupportedError where this, or a tool that must be called, has no end."""
    schema = schema_of(body.response_format)
    if schema is not None:
        check_schema(schema, "response_format")
    # Where a tool may but need not be called, its schema rules nothing that is written here.
    if schema is not None or body.tool_choice not in (None, "none", "auto"):
        for number, tool in enumerate(body.tools or ()):
            check_schema(tool.function.parameters, f"tools.{number}.function.parameters")
    return schema


def _conversation(body: ChatBody) -> Conversation:
    messages = []
    for number, message in enumerate(body.messages):
        # A list of parts is joined: the models here read text only.
        text = message.text()
        _check_calls(number, message)
        # An assistant's turn may consist of calls alone.
        if text is None and message.role != "assistant":
            raise ApiError(
                400,
                f"Invalid message {number + 1} ({message.role}): it has no content; expected: a text",
                param=f"messages.{number}.content",
                code="invalid_value",
            )
        messages.append(
            Message(
                role=message.role,
                content=text or "",
                name=message.name,
                tool_calls=tuple(call.model_dump() for call in message.tool_calls or ()),
                tool_call_id=message.tool_call_id,
                reasoning=message.thought,
            )
        )
    return Conversation(messages=tuple(messages), tools=tuple(tool.document() for tool in body.tools or ()))


def _check_calls(number: int, message: ChatMessage) -> None:
    """Only an assistant calls, and only a tool answers a call; arguments are JSON within JSON."""
    for place, call in enumerate(message.tool_calls or ()):
        if (fault := fault_of_text(call.function.arguments)) is not None:
            raise refusal(fault, f"messages.{number}.tool_calls.{place}.function.arguments")
    wrong = None
    if message.thought is not None and message.role != "assistant":
        name = "reasoning_content" if message.reasoning_content else "reasoning"
        wrong = (name, "thoughts in messages of the assistant only")
    elif message.tool_calls and message.role != "assistant":
        wrong = ("tool_calls", "calls of tools in messages of the assistant only")
    # Missing where it must be, or there where it must not.
    elif (message.tool_call_id is None) == (message.role == "tool"):
        wrong = ("tool_call_id", "the id of the call with messages of the role tool, and with no others")
    if wrong is not None:
        message_text = f"Invalid message {number + 1} ({message.role}); expected: {wrong[1]}"
        raise ApiError(400, message_text, param=f"messages.{number}.{wrong[0]}", code="invalid_value")


def _max_tokens(body: ChatBody) -> int | None:
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise ApiError(
            400,
            f"max_tokens={body.max_tokens} contradicts max_completion_tokens={body.max_completion_tokens}; "
            "expected: one of them",
            param="max_tokens",
            code="invalid_value",
        )
    # max_tokens is the older name of the same limit (OpenAI: "Create chat completion").
    return body.max_completion_tokens or body.max_tokens


def _num_top(body: ChatBody) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(
            400, "top_logprobs needs logprobs: true; expected: both", param="top_logprobs", code="invalid_value"
        )
    return (body.top_logprobs or 0) if body.logprobs else None
