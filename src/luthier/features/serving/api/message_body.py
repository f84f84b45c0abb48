"""The body of /v1/messages: what is supported, and what is refused by name.

Source: Anthropic's API reference, "Create a Message" and "Count tokens in a Message".
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from luthier.core.frozen_model import StrictModel
from luthier.features.serving.api.answering import Name, Unsupported
from luthier.features.serving.api.tools import MAX_TOOLS, NAME, Tool, ToolFunction

_MAX_MESSAGES: Final = 2048
_MAX_STOPS: Final = 16


def _type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def _only(*known: str) -> BeforeValidator:
    """Names a block of a type that is not supported, before the union of blocks says that it fits none of them."""

    def check(value: Any) -> Any:
        if (kind := _type_of(value)) not in known:
            wanted = ", ".join(known)
            raise ValueError(
                f"a block of the type {kind!r}; expected: {wanted}; what to do: leave it out, or send its text"
            )
        return value

    return BeforeValidator(check)


def _refuse_other_tools(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "custom":
        raise ValueError(
            f"a tool of the type {kind!r}, which only the hosted service has; expected: tools with a name and an "
            "input_schema; what to do: describe it as such a tool, and run it yourself"
        )
    return value


def _refuse_fast(value: Any) -> Any:
    if value not in (None, "standard"):
        raise ValueError("this server has one speed, standard: leave it out")
    return value


class CacheControl(StrictModel):
    """A mark for the hosted service's prompt cache; it changes no answer here.

    Attributes:
        type: Always `ephemeral`.
        ttl: Five minutes or an hour; not used here.
    """

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(StrictModel):
    """Text.

    Attributes:
        type: Always `text`.
        text: The text.
        cache_control: Accepted, and not used here.
        citations: Refused.
    """

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Unsupported = None


def _kind_of_content(value: Any) -> str:
    return "as_string" if isinstance(value, str) else "as_blocks"


# Tags that are no keys of a block: they are taken out of the place that an error names.
OnlyText = Annotated[TextBlock, _only("text")]
TextContent = Annotated[
    Annotated[str, Tag("as_string")] | Annotated[list[OnlyText], Field(fail_fast=True), Tag("as_blocks")],
    Discriminator(_kind_of_content),
]


class DirectCaller(StrictModel):
    """Who has called a tool: the model itself."""

    type: Literal["direct"]


class ToolUseBlock(StrictModel):
    """A call of a tool.

    Attributes:
        type: Always `tool_use`.
        id: Of the call; its result names it.
        name: Of the tool.
        input: The arguments.
        cache_control: Accepted, and not used here.
        caller: The model itself; other callers are refused.
        toolset_name: Refused.
    """

    type: Literal["tool_use"]
    id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    name: Annotated[str, Field(min_length=1, max_length=1024)]
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None
    toolset_name: Unsupported = None


class ToolResultBlock(StrictModel):
    """What a call has returned.

    Attributes:
        type: Always `tool_result`.
        tool_use_id: The call that it answers.
        content: The result, as text or as blocks of text; None or left out for an empty one.
        is_error: Whether the tool has failed.
        cache_control: Accepted, and not used here.
        toolset_name: Refused.
    """

    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1, max_length=128)]
    content: TextContent | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: Unsupported = None


class ThinkingBlock(StrictModel):
    """A thought of an earlier answer. Its signature is not checked: the text itself is what the model reads.

    Attributes:
        type: Always `thinking`.
        thinking: The text of the thought.
        signature: Accepted, and not checked.
    """

    type: Literal["thinking"]
    thinking: str
    signature: str


def _kind_of_block(value: Any) -> str:
    return f"{_type_of(value)}_block"


Block = Annotated[
    Annotated[TextBlock, Tag("text_block")]
    | Annotated[ToolUseBlock, Tag("tool_use_block")]
    | Annotated[ToolResultBlock, Tag("tool_result_block")]
    | Annotated[ThinkingBlock, Tag("thinking_block")],
    Discriminator(_kind_of_block),
    _only("text", "tool_use", "tool_result", "thinking"),
]
Content = Annotated[
    Annotated[str, Tag("as_string")]
    | Annotated[list[Block], Field(fail_fast=True, min_length=1, max_length=_MAX_MESSAGES), Tag("as_blocks")],
    Discriminator(_kind_of_content),
]


class InputMessage(StrictModel):
    """One turn, or a part of it.

    Attributes:
        role: Who speaks; `system` is a further system prompt.
        content: A text, or blocks.
    """

    role: Literal["user", "assistant", "system"]
    content: Content


class CustomTool(StrictModel):
    """A tool that the client runs.

    Attributes:
        name: Up to 128 letters, digits, `_` and `-`.
        input_schema: JSON Schema of the arguments.
        description: What the tool does, for the model.
        type: `custom`, or left out.
        strict: Whether the model's own calls match the schema, as required ones always do.
        cache_control: Accepted, and not used here.
        eager_input_streaming: Accepted, and not used here.
        defer_loading: False: all tools are in the prompt.
        allowed_callers: The model alone.
        input_examples: Refused.
    """

    name: Annotated[str, Field(pattern=NAME)]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    input_examples: Unsupported = None

    def as_openai(self) -> Tool:
        """In the format of chat completions."""
        made = ToolFunction(
            name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict
        )
        return Tool(type="function", function=made)


class AutoChoice(StrictModel):
    """The model decides, or calls no tool.

    Attributes:
        type: `any` requires a call of some tool.
        disable_parallel_tool_use: Whether at most one tool is called.
    """

    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool | None = None


class NoChoice(StrictModel):
    """No tool is called."""

    type: Literal["none"]


class OneTool(StrictModel):
    """This tool is called.

    Attributes:
        type: Always `tool`.
        name: Of the tool.
        disable_parallel_tool_use: Whether it is called at most once.
    """

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class EnabledThinking(StrictModel):
    """A thought before the answer, of at most `budget_tokens`, which are part of `max_tokens`.

    Attributes:
        type: Always `enabled`.
        budget_tokens: At most so many tokens of thought.
        display: `omitted` leaves the text of the thought out of the answer.
    """

    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1)]
    display: Literal["summarized", "omitted"] | None = None


class AdaptiveThinking(StrictModel):
    """The model decides.

    Attributes:
        type: Always `adaptive`.
        display: `omitted` leaves the text of the thought out of the answer.
    """

    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class DisabledThinking(StrictModel):
    """No thought, of a model whose template can turn it off."""

    type: Literal["disabled"]


class JsonFormat(BaseModel):
    """An answer that is JSON of a schema.

    Attributes:
        type: Always `json_schema`.
        own_schema: The JSON Schema, `schema` in the request.
    """

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    type: Literal["json_schema"]
    own_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(StrictModel):
    """How much is thought, and the form of the answer.

    Attributes:
        effort: How much to think, for templates that have such an option.
        format: What the answer is held to; None for any text.
    """

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class ContextEdit(StrictModel):
    """How the hosted service would shorten a long conversation; nothing is left out here.

    Attributes:
        type: The kind of edit.
        keep: Accepted, and not used here, as all others.
    """

    type: Literal["clear_thinking_20251015", "clear_tool_uses_20250919", "compact_20260112"]
    keep: Literal["all"] | dict[str, Any] | None = None
    trigger: dict[str, Any] | None = None
    clear_at_least: dict[str, Any] | None = None
    clear_tool_inputs: bool | list[str] | None = None
    exclude_tools: list[str] | None = None
    instructions: str | None = None
    pause_after_compaction: bool | None = None


class ContextManagement(StrictModel):
    """Edits of a conversation, none of which is applied: the answer says so."""

    edits: Annotated[list[ContextEdit], Field(fail_fast=True, max_length=16)] | None = None


class MessageMetadata(StrictModel):
    """The end user; selects the target of a deployment."""

    user_id: Name | None = None


class PromptBody(BaseModel):
    """What a prompt is made of. Unknown keys are rejected, so that no option is silently ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=1024)
    messages: Annotated[list[InputMessage], Field(fail_fast=True, min_length=1, max_length=_MAX_MESSAGES)]
    system: TextContent | None = None
    tools: (
        Annotated[
            list[Annotated[CustomTool, BeforeValidator(_refuse_other_tools)]],
            Field(fail_fast=True, max_length=MAX_TOOLS),
        ]
        | None
    ) = None
    tool_choice: Annotated[AutoChoice | NoChoice | OneTool, Field(discriminator="type")] | None = None
    thinking: Annotated[EnabledThinking | AdaptiveThinking | DisabledThinking, Field(discriminator="type")] | None = (
        None
    )
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Annotated[str | None, BeforeValidator(_refuse_fast)] = None

    context_management: ContextManagement | None = None
    mcp_servers: Unsupported = None
    output_format: Unsupported = None

    @property
    def warning(self) -> str | None:
        """What of the request is not done; None for nothing."""
        if self.context_management is None or not self.context_management.edits:
            return None
        return "no edit of context_management is applied here: the model reads the whole conversation"


class MessagesBody(PromptBody):
    """The request body. The table in docs/server.md documents each parameter; a test checks it."""

    max_tokens: int = Field(ge=1)
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=_MAX_STOPS)] | None
    ) = None
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000)
    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    # Refused by a code that clients know: then they send the whole conversation.
    thread: dict[str, Any] | None = None

    container: Unsupported = None
    diagnostics: Unsupported = None
    inference_geo: Unsupported = None

    @property
    def user(self) -> str | None:
        """The end user, if the request names one."""
        return None if self.metadata is None else self.metadata.user_id

    @property
    def shows_thoughts(self) -> bool:
        """Whether thinking blocks have their text."""
        return getattr(self.thinking, "display", None) != "omitted"
