"""/v1/chat/completions: chat completions, complete or streamed, with tools and response formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from luthier.core.access import Caller
from luthier.core.conversation import Conversation, Message
from luthier.core.frozen_model import StrictModel
from luthier.core.json_limits import fault_of_text
from luthier.core.records.fine_tuning import Metadata
from luthier.core.stream import TextRequest
from luthier.core.text.json_schema import check_schema
from luthier.features.serving.api.answering import (
    ANSWERS,
    CacheMark,
    ChunkWriter,
    Keep,
    Name,
    OneTier,
    SamplingBody,
    Unsupported,
    Verbosity,
    respond,
)
from luthier.features.serving.api.chat_answer import ChatResponseBuilder
from luthier.features.serving.api.functions import (
    PARALLEL,
    FunctionChoice,
    Functions,
    call_of,
    function_tools,
)
from luthier.features.serving.api.sent_back import AddedByClient, CalledFunction, Refusal, ToolCall
from luthier.features.serving.api.tools import (
    MAX_TOOLS,
    NAME,
    AllowedToolsChoice,
    PlainChoice,
    Tool,
    ToolChoice,
    tool_wishes,
    tools_allowed,
)
from luthier.features.traffic.stored_completions import completion_recorder
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Asker, HomeContext
from luthier.platform.http.errors import ApiError
from luthier.platform.http.middleware import refusal


class TextFormat(StrictModel):
    """Unconstrained text."""

    type: Literal["text"]


class ObjectFormat(StrictModel):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(BaseModel):
    """A JSON schema; it is always enforced exactly, regardless of `strict`."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    # "schema" is a method of pydantic
    own_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class SchemaFormat(StrictModel):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


def schema_of(wanted: TextFormat | ObjectFormat | SchemaFormat | None) -> dict[str, Any] | None:
    """The constraint on the answer; None for any text."""
    if isinstance(wanted, SchemaFormat):
        return wanted.json_schema.own_schema or {"type": "object"}
    return {"type": "object"} if isinstance(wanted, ObjectFormat) else None


router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])

_MAX_MESSAGES: Final = 2048
_MAX_KEYS_SHOWN, _MAX_KEY_CHARACTERS = 8, 64
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_OptionName = Annotated[str, Field(min_length=1, max_length=64)]
_OptionValue = bool | int | float | Annotated[str, Field(max_length=1024)]
TemplateOptions = Annotated[dict[_OptionName, _OptionValue], Field(max_length=32)]
"""Options of the model's chat template by name; the template determines which exist."""


class TextPart(StrictModel):
    """A part of a message; only text is supported."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: CacheMark = None


class ChatMessage(StrictModel):
    """One turn; an answer may be sent back unchanged. parsed: the client's own object of it; accepted, not read.

    Other keys are not refused, as the hosted service does not refuse them either: clients send back what other servers
    have added. They are not read, and named in a warning.
    """

    model_config = ConfigDict(extra="ignore", strict=True)
    _unread: tuple[str, ...] = PrivateAttr(default=())

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        str | Annotated[list[Annotated[TextPart | Refusal, Field(discriminator="type")]], Field(fail_fast=True)] | None
    ) = None
    name: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    audio: Unsupported = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    parsed: AddedByClient = None

    @model_validator(mode="wrap")
    @classmethod
    def _note_unread(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        made = handler(value)
        if isinstance(value, dict):
            made._unread = tuple(name for name in value if name not in cls.model_fields)
        return made

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys that the API does not have."""
        return self._unread

    def text(self) -> str | None:
        """The content as one text; None if there is none."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        # OpenAI's answers may contain a refusal instead of content, and clients send them back unchanged.
        return self.content if self.content is not None else self.refusal

    @property
    def thought(self) -> str | None:
        """The assistant's reasoning before the answer, under either common field name."""
        return self.reasoning_content or self.reasoning or None


class PromptCache(StrictModel):
    """Prompt cache retention of the hosted service; ignored here, where the KV cache is freed with the answer."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


CacheRetention = Literal["in_memory", "in-memory", "24h"]
"""`in-memory` is what clients of the versions 2.x send."""


class Prediction(StrictModel):
    """Predicted output, which could only speed up the answer."""

    type: Literal["content"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]


class ChatBody(SamplingBody):
    """The request body. The table in docs/server.md documents each parameter; a test checks it."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=_MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Functions | None = None
    function_call: FunctionChoice | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions | None = None

    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: OneTier = None
    verbosity: Verbosity = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: CacheRetention | None = None
    prompt_cache_options: PromptCache | None = None
    prediction: Prediction | None = None

    audio: Unsupported = None
    moderation: Unsupported = None
    web_search_options: Unsupported = None


@router.post("", responses=ANSWERS, response_class=Response)
async def create_chat_completion(body: ChatBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """Generate the next turn of a conversation; with `stream` as server-sent events."""
    return await respond(
        request,
        context,
        caller,
        model=body.model,
        asked=[chat_request(body, context.settings.default_max_tokens)],
        words=lambda fingerprint: ChunkWriter(chat_response_builder(body, fingerprint)),
        is_streamed=bool(body.stream),
        user=body.end_user(),
        keep=await _recorder(context, caller, body),
        warning=unread_warning(body.messages),
    )


def chat_response_builder(body: ChatBody, fingerprint: str) -> ChatResponseBuilder:
    """Of the answer to a request."""
    return ChatResponseBuilder(
        body.model,
        fingerprint,
        body.tells_usage,
        bool(body.logprobs),
        has_functions=body.functions is not None,
        # There is one tier, the default.
        service_tier=None if body.service_tier is None else "default",
    )


def unread_warning(messages: Sequence[ChatMessage]) -> str | None:
    """Which keys of messages were not read; None for none."""
    names = list(dict.fromkeys(name for message in messages for name in message.unread))
    if not names:
        return None
    shown = ", ".join(json.dumps(name[:_MAX_KEY_CHARACTERS]) for name in names[:_MAX_KEYS_SHOWN])
    more = f" and {len(names) - _MAX_KEYS_SHOWN} more" if len(names) > _MAX_KEYS_SHOWN else ""
    return f"keys of messages that the API does not have were not read: {shown}{more}"


async def _recorder(context: Context, caller: Caller, body: ChatBody) -> Keep | None:
    if not body.store:
        return None
    asked = body.model_dump(mode="json", exclude_unset=True, by_alias=True)
    return await to_thread.run_sync(completion_recorder, context, caller, asked)


def chat_request(body: ChatBody, default_max_tokens: int) -> TextRequest:
    """The request for the engine. Raises ApiError and UnsupportedError for values that contradict each other."""
    # None differs from a number: only an explicit limit includes the reasoning.
    limit, (tools, choice) = _max_tokens(body), _callable_tools(body)
    return TextRequest(
        conversation=_conversation(body, tools),
        sampling=body.sampling(),
        max_new_tokens=limit or default_max_tokens,
        # An explicit limit covers reasoning and answer together, as in OpenAI's API.
        max_thinking_tokens=None if limit is None else 0,
        template_options=body.chat_template_kwargs or {},
        reasoning_effort=body.reasoning_effort,
        stop=body.stops(),
        num_choices=body.n or 1,
        num_top=_num_top(body),
        json_schema=_schema(body, choice),
        # OpenAI's default is true, also for an explicit null.
        calls_in_parallel=body.parallel_tool_calls is not False and body.functions is None,
        **tool_wishes(tools, choice),
    )


def _callable_tools(body: ChatBody) -> tuple[list[Tool], PlainChoice | None]:
    """The tools that may be called, and the choice among them."""
    newer = {"tools": body.tools, "tool_choice": body.tool_choice, PARALLEL: body.parallel_tool_calls}
    functions, named = function_tools(body.functions, body.function_call, newer)
    if body.functions is not None:
        return functions, named
    if not isinstance(body.tool_choice, AllowedToolsChoice):
        return body.tools or [], body.tool_choice
    allowed = body.tool_choice.allowed_tools
    names = {one.function.name for one in allowed.tools}
    return tools_allowed(body.tools or [], names, "tool_choice.allowed_tools.tools"), allowed.mode


def _schema(body: ChatBody, choice: PlainChoice | None) -> dict[str, Any] | None:
    """The constraint on the answer. Raises UnsupportedError if it, or a required tool, has no finite instance."""
    schema = schema_of(body.response_format)
    if schema is not None:
        check_schema(schema, "response_format")
    # The schema of an optional tool is enforced where it is strict.
    all_are = schema is not None or choice not in (None, "none", "auto")
    for number, tool in enumerate(body.tools or ()):
        if all_are or tool.function.strict:
            check_schema(tool.function.parameters, f"tools.{number}.function.parameters")
    for number, function in enumerate(body.functions or ()):
        if all_are or function.strict:
            check_schema(function.parameters, f"functions.{number}.parameters")
    return schema


def _conversation(body: ChatBody, tools: list[Tool]) -> Conversation:
    messages, last_call = [], None
    for number, message in enumerate(body.messages):
        # A list of parts is joined: the models here read text only.
        text = message.text()
        _check_calls(number, message)
        # An assistant's turn may consist of calls alone.
        if text is None and message.role not in ("assistant", "function"):
            raise ApiError(
                400,
                f"Invalid message {number + 1} ({message.role}): it has no content; expected: a text",
                param=f"messages.{number}.content",
                code="invalid_value",
            )
        calls = [call_of(message.function_call, number)] if message.function_call else message.tool_calls or []
        last_call = calls[-1].id if calls else last_call
        messages.append(
            Message(
                role="tool" if message.role == "function" else message.role,
                content=text or "",
                name=message.name,
                tool_calls=tuple(call.document() for call in calls),
                # A message of the role function has no id: it answers the last call.
                tool_call_id=last_call if message.role == "function" else message.tool_call_id,
                reasoning=message.thought,
            )
        )
    return Conversation(messages=tuple(messages), tools=tuple(tool.document() for tool in tools))


def _check_calls(number: int, message: ChatMessage) -> None:
    """Check that only assistants call tools and only tools answer calls; arguments are JSON within JSON."""
    for place, call in enumerate(message.tool_calls or ()):
        if (fault := fault_of_text(call.function.arguments)) is not None:
            raise refusal(fault, f"messages.{number}.tool_calls.{place}.function.arguments")
    function = message.function_call
    if function is not None and (fault := fault_of_text(function.arguments)) is not None:
        raise refusal(fault, f"messages.{number}.function_call.arguments")
    wrong = None
    if message.thought is not None and message.role != "assistant":
        name = "reasoning_content" if message.reasoning_content else "reasoning"
        wrong = (name, "thoughts in messages of the assistant only")
    elif message.role != "assistant" and _has_refusal(message):
        wrong = ("content", "parts of type refusal in messages of the assistant only")
    elif message.tool_calls and message.role != "assistant":
        wrong = ("tool_calls", "calls of tools in messages of the assistant only")
    elif function is not None and (message.role != "assistant" or message.tool_calls):
        wrong = ("function_call", "a call in messages of the assistant only, and without tool_calls")
    # Missing where required, or present where not allowed.
    elif (message.tool_call_id is None) == (message.role == "tool"):
        wrong = ("tool_call_id", "the id of the call with messages of the role tool, and with no others")
    if wrong is not None:
        message_text = f"Invalid message {number + 1} ({message.role}); expected: {wrong[1]}"
        raise ApiError(400, message_text, param=f"messages.{number}.{wrong[0]}", code="invalid_value")


def _has_refusal(message: ChatMessage) -> bool:
    return isinstance(message.content, list) and any(isinstance(part, Refusal) for part in message.content)


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
    if body.top_logprobs and not body.logprobs:
        raise ApiError(
            400, "top_logprobs needs logprobs: true; expected: both", param="top_logprobs", code="invalid_value"
        )
    return (body.top_logprobs or 0) if body.logprobs else None
