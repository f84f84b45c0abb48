"""The body of a request to /v1/responses, and the request for the engine that it makes.

What only the hosted service has (its own tools, background runs, prompt templates, images) is refused by
name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from luthier.core.conversation import Conversation, Message
from luthier.core.frozen_model import StrictModel
from luthier.core.records.fine_tuning import Metadata
from luthier.core.stream import Sampling, TextRequest
from luthier.core.text.json_schema import check_schema
from luthier.features.serving.api.answering import MinP, Name, OffOnly, OneTier, TopK, Unsupported, Verbosity
from luthier.features.serving.api.chat import (
    CacheRetention,
    Effort,
    ObjectFormat,
    PromptCache,
    TemplateOptions,
    TextFormat,
)
from luthier.features.serving.api.responses.items import Items
from luthier.features.serving.api.tools import (
    MAX_TOOLS,
    NAME,
    NamedFunction,
    NamedTool,
    PlainChoice,
    Tool,
    ToolFunction,
    refuse_other_choices,
    tool_wishes,
    tools_allowed,
)
from luthier.features.serving.service import new_seed

LOGPROBS: Final = "message.output_text.logprobs"
ENCRYPTED: Final = "reasoning.encrypted_content"


_HOSTED: Final = (
    "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
    "message.input_image.image_url", "web_search_call.action.sources", "web_search_call.results",
)  # fmt: skip
"""Parts of items that only the hosted service has: its tools, and images."""


def fault_of_include(name: Any) -> str | None:
    """Why a value of `include` is refused; None for those of OpenAI's API."""
    if name in (LOGPROBS, ENCRYPTED, *_HOSTED):
        return None
    return f"{str(name)[:100]!r} does not exist; expected: {LOGPROBS}, {ENCRYPTED} or another value of OpenAI's API"


def include_warning(names: Sequence[str] | None) -> str | None:
    """Which values of `include` add nothing to any answer here; None for none."""
    found = [name for name in dict.fromkeys(names or ()) if name in _HOSTED]
    return f"no answer here has what these values of include add: {', '.join(found)}" if found else None


def _refuse_includes(value: Any) -> Any:
    for one in value if isinstance(value, list) else ():
        if (fault := fault_of_include(one)) is not None:
            raise ValueError(fault)
    return value


Include = Annotated[list[str], Field(max_length=16), BeforeValidator(_refuse_includes)]
"""What is returned in addition."""


class FunctionTool(StrictModel):
    """A function that the model may call; the tools of the hosted service do not exist here.

    Attributes:
        type: Always `function`.
        name: Up to 128 letters, digits, `_` and `-`.
        description: What the function does, for the model.
        parameters: JSON Schema of the arguments; None for none.
        strict: Whether the model's own calls match the schema, as required ones always do.
        defer_loading: False: all tools are in the prompt.
        allowed_callers: The model alone.
        output_schema: Refused.
        is_async: False, `async` in the request.
    """

    type: Literal["function"]
    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: OffOnly = None
    allowed_callers: list[Literal["direct"]] | None = None
    output_schema: Unsupported = None
    is_async: Annotated[OffOnly, Field(alias="async")] = None

    def as_chat(self) -> Tool:
        """The same tool as chat completions have it."""
        function = ToolFunction(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return Tool(type="function", function=function)


class FunctionChoice(StrictModel):
    """The required function.

    Attributes:
        type: Always `function`.
        name: Of the function.
    """

    type: Literal["function"]
    name: str


class AllowedTools(StrictModel):
    """The tools of the request that may be called.

    Attributes:
        type: Always `allowed_tools`.
        mode: `required` if one of them has to be called.
        tools: By their names.
    """

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | FunctionChoice | AllowedTools, BeforeValidator(refuse_other_choices)
]


class SchemaFormat(BaseModel):
    """JSON that matches a schema; it is always enforced exactly, regardless of `strict`.

    Attributes:
        type: Always `json_schema`.
        name: Of the schema; not part of the prompt.
        own_schema: The JSON Schema, `schema` in the request.
        description: Accepted, and not part of the prompt.
        strict: Accepted, and not used here.
    """

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=NAME)]
    # "schema" is a method of pydantic
    own_schema: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextOptions(StrictModel):
    """The form of the answer.

    Attributes:
        format: What the answer is held to; None for any text.
        verbosity: `medium`, or left out.
    """

    format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Verbosity = None

    def json_schema(self) -> dict[str, Any] | None:
        """The constraint on the answer; None for any text."""
        if isinstance(self.format, SchemaFormat):
            return self.format.own_schema
        return {"type": "object"} if isinstance(self.format, ObjectFormat) else None


def _refuse_short(value: Any) -> Any:
    if value == "concise":
        raise ValueError("there is no shorter form of the reasoning here: send auto or detailed, or leave it out")
    return value


Summary = Annotated[Literal["auto", "detailed"] | None, BeforeValidator(_refuse_short)]


class Reasoning(StrictModel):
    """How much to think; with `summary` the reasoning is returned as the summary of its item, in full.

    Attributes:
        effort: For templates that have such an option.
        summary: Whether reasoning is returned as a summary.
        generate_summary: The older name of `summary`.
        context: `auto`, or left out.
        mode: `standard`, or left out.
    """

    effort: Effort | None = None
    summary: Summary = None
    generate_summary: Summary = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


_ConversationId = Annotated[str, Field(min_length=1, max_length=100)]


class NamedConversation(StrictModel):
    """A conversation by its id."""

    id: _ConversationId


class PromptBody(BaseModel):
    """What makes the prompt: common to answers and to the count of their tokens."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=1024)
    input: Items
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    conversation: _ConversationId | NamedConversation | None = None

    @property
    def conversation_id(self) -> str | None:
        """The conversation whose items come before the input; None for none."""
        return self.conversation.id if isinstance(self.conversation, NamedConversation) else self.conversation


class TokenCountBody(PromptBody):
    """The request body of a count."""

    personality: Unsupported = None


class StreamOptions(StrictModel):
    """Options of an event stream."""

    include_obfuscation: OffOnly = None


class Compaction(StrictModel):
    """What the hosted service does with a conversation that is longer than a threshold; here none is shortened so.

    Attributes:
        type: Always `compaction`.
        compact_threshold: Accepted, and not used here.
    """

    type: Literal["compaction"]
    compact_threshold: int | None = Field(default=None, ge=1)


class ResponseBody(PromptBody):
    """The request body. The table in docs/server.md documents each parameter; a test checks it."""

    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: TopK = None
    min_p: MinP = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    include: Include | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None
    safety_identifier: Name | None = None

    max_tool_calls: int | None = Field(default=None, ge=1)
    service_tier: OneTier = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: CacheRetention | None = None
    prompt_cache_options: PromptCache | None = None
    background: OffOnly = None
    context_management: Annotated[list[Compaction], Field(fail_fast=True, max_length=8)] | None = None

    access_programs: Unsupported = None
    background_options: Unsupported = None
    image: Unsupported = None
    moderation: Unsupported = None
    prompt: Unsupported = None

    @property
    def returns_logprobs(self) -> bool:
        """Whether text comes with the likelihoods of its tokens."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    @property
    def returns_encrypted(self) -> bool:
        """Whether reasoning items have `encrypted_content`."""
        return ENCRYPTED in (self.include or ())

    @property
    def summarises(self) -> bool:
        """Whether reasoning is returned as a summary."""
        return self.reasoning is not None and (self.reasoning.summary or self.reasoning.generate_summary) is not None

    @property
    def warning(self) -> str | None:
        """What of the request is not done; None for nothing."""
        found = [include_warning(self.include)]
        if self.context_management:
            found.append("no conversation is compacted here (context_management): truncation auto leaves out old turns")
        return "; ".join(filter(None, found)) or None

    def end_user(self) -> str | None:
        """The end user, if the request names one; selects the target of a deployment."""
        return self.user or self.safety_identifier


def response_request(body: ResponseBody, messages: tuple[Message, ...], default_max_tokens: int) -> TextRequest:
    """The request for the engine.

    Args:
        body: The body.
        messages: The conversation, with that of earlier responses.
        default_max_tokens: Of an answer without its own limit.

    Raises:
        ApiError: Values that contradict each other.
        UnsupportedError: A schema that cannot be enforced.
    """
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        seed=new_seed() if body.seed is None else body.seed,
    )
    limit = body.max_output_tokens
    changes = {
        "sampling": sampling,
        "max_new_tokens": limit or default_max_tokens,
        "counts_tokens": False,
        # An explicit limit covers reasoning and answer together, as in OpenAI's API.
        "max_thinking_tokens": None if limit is None else 0,
        "num_top": (body.top_logprobs or 0) if body.returns_logprobs else None,
    }
    return prompt_request(body, messages).model_copy(update=changes)


def prompt_request(body: PromptBody, messages: tuple[Message, ...]) -> TextRequest:
    """The request that has the engine count the tokens of a prompt.

    Raises:
        ApiError: Values contradict each other.
        UnsupportedError: A schema cannot be enforced.
    """
    tools, choice = _callable_tools(body)
    schema = None if body.text is None else body.text.json_schema()
    if schema is not None:
        check_schema(schema, "text.format.schema")
    # The schema of an optional tool is enforced where it is strict.
    all_are = schema is not None or choice not in (None, "none", "auto")
    for number, tool in enumerate(body.tools or ()):
        if all_are or tool.strict:
            check_schema(tool.parameters, f"tools.{number}.parameters")
    return TextRequest(
        conversation=Conversation(messages=messages, tools=tuple(tool.document() for tool in tools)),
        max_new_tokens=1,
        template_options=body.chat_template_kwargs or {},
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        json_schema=schema,
        # OpenAI's default is true, also for an explicit null.
        calls_in_parallel=body.parallel_tool_calls is not False,
        drops_oldest=body.truncation == "auto",
        counts_tokens=True,
        **tool_wishes(tools, choice),
    )


def _callable_tools(body: PromptBody) -> tuple[list[Tool], PlainChoice | None]:
    """The tools that may be called, and the choice among them, as chat completions have both."""
    tools, choice = [tool.as_chat() for tool in body.tools or ()], body.tool_choice
    if isinstance(choice, FunctionChoice):
        return tools, NamedTool(type="function", function=NamedFunction(name=choice.name))
    if not isinstance(choice, AllowedTools):
        return tools, choice
    return tools_allowed(tools, {one.name for one in choice.tools}, "tool_choice.tools"), choice.mode
