"""Items of the Responses API: turns, calls of functions, their results, and reasoning; and the conversation in them.

An answer of the API may be sent back unchanged as input. Consecutive items of the assistant (reasoning, a message,
calls) are one turn of the conversation.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Discriminator, Field, Tag, TypeAdapter

from luthier.core.conversation import Message
from luthier.core.frozen_model import StrictModel
from luthier.core.json_limits import fault_of_text
from luthier.features.serving.api.answering import CacheMark, OffOnly, Unsupported
from luthier.features.serving.api.sent_back import AddedByClient, Refusal, arguments_sent_back
from luthier.platform.http.errors import ApiError
from luthier.platform.http.middleware import refusal

MAX_ITEMS: Final = 2048
"""Of one conversation, as messages of a chat completion."""
_MAX_PARTS: Final = 1024
_ItemId = Annotated[str, Field(max_length=128)]
_CallId = Annotated[str, Field(min_length=1, max_length=128)]
_Name = Annotated[str, Field(min_length=1, max_length=1024)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputText(StrictModel):
    """Text of a message, or of the result of a call.

    Attributes:
        type: Always `input_text`.
        text: The text.
        prompt_cache_breakpoint: Accepted, and not read.
    """

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: CacheMark = None


class OutputText(StrictModel):
    """Text of an answer. Annotations and log-probabilities may be sent back; they are no part of the prompt.

    Attributes:
        type: Always `output_text`.
        text: The text.
        annotations: Accepted, and not read.
        logprobs: Accepted, and not read.
        parsed: Accepted, and not read.
    """

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[dict[str, Any]], Field(max_length=_MAX_PARTS)] | None = None
    logprobs: list[dict[str, Any]] | None = None
    parsed: AddedByClient = None


Part = Annotated[InputText | OutputText | Refusal, Field(discriminator="type")]


def _as_parts(value: Any) -> Any:
    """A plain text as the one part that it is short for, so that what is wrong with a list has its place."""
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


Parts = Annotated[
    list[Part],
    Field(fail_fast=True, max_length=_MAX_PARTS),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[Part]),
]
Texts = Annotated[
    list[InputText],
    Field(fail_fast=True, max_length=_MAX_PARTS),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[InputText]),
]


class MessageItem(StrictModel):
    """A turn of the user, the system, or the assistant.

    Attributes:
        type: `message`, also where it is left out.
        role: Who speaks.
        content: A text, or parts.
        id: Accepted, and not read.
        status: Accepted, and not read.
        phase: Of an answer of the hosted service: accepted, and not read.
    """

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    id: _ItemId | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    @property
    def text(self) -> str:
        """The whole content."""
        return "".join(part.text for part in self.content)


class DirectCaller(StrictModel):
    """Who has called a function: the model itself."""

    type: Literal["direct"]


class CallItem(StrictModel):
    """A call of a function, from an earlier answer.

    Attributes:
        type: Always `function_call`.
        call_id: Its result names it.
        name: Of the function.
        arguments: As JSON text.
        id: Accepted, and not read.
        status: Accepted, and not read.
        caller: The model itself; other callers are refused.
        namespace: Refused.
        is_async: False, `async` in the request.
        parsed_arguments: Accepted, and not read.
    """

    type: Literal["function_call"]
    call_id: _CallId
    name: _Name
    arguments: str
    id: _ItemId | None = None
    status: ItemStatus | None = None
    caller: DirectCaller | None = None
    namespace: Unsupported = None
    is_async: Annotated[OffOnly, Field(alias="async")] = None
    parsed_arguments: AddedByClient = None


class CallOutputItem(StrictModel):
    """The result of a call.

    Attributes:
        type: Always `function_call_output`.
        call_id: The call that it answers.
        output: The result, as text or as parts.
        id: Accepted, and not read.
        status: Accepted, and not read.
        name: Of the function, which chat templates may write.
        caller: As of the call.
        namespace: Refused.
    """

    type: Literal["function_call_output"]
    call_id: _CallId
    output: Texts
    id: _ItemId | None = None
    status: ItemStatus | None = None
    name: _Name | None = None
    caller: DirectCaller | None = None
    namespace: Unsupported = None

    @property
    def text(self) -> str:
        """The whole result."""
        return "".join(part.text for part in self.output)


class SummaryText(StrictModel):
    """Reasoning, where a summary was requested."""

    type: Literal["summary_text"]
    text: str


class ReasoningText(StrictModel):
    """Reasoning."""

    type: Literal["reasoning_text"]
    text: str


_OWN: Final = "luthier."
"""What `encrypted_content` of this server begins with."""


def as_encrypted_content(thought: str) -> str:
    """A thought as `encrypted_content`: a text of one line, that a client keeps and sends back.

    In OpenAI's API only the service can read it. Here it hides nothing, since the same item has the thought as text;
    but there are clients that send reasoning back by this field alone.
    """
    return _OWN + base64.b64encode(thought.encode(errors="replace")).decode()


def text_of_encrypted_content(value: str) -> str:
    """The thought of `as_encrypted_content`. Raises ValueError for what no answer of this server had."""
    if not value.startswith(_OWN):
        raise ValueError("not of this server")
    return base64.b64decode(value.removeprefix(_OWN), validate=True).decode()


def _checked_encrypted_content(value: str | None) -> str | None:
    if value:
        try:
            text_of_encrypted_content(value)
        except ValueError as error:
            raise ValueError(
                "reasoning that another server has encrypted cannot be read here: leave it out, and send "
                "the reasoning as content, or leave the item out"
            ) from error
    return value


class ReasoningItem(StrictModel):
    """What the model thought before its answer; it belongs to the message or the calls behind it.

    Attributes:
        type: Always `reasoning`.
        summary: The thought, where no content is sent.
        content: The thought.
        encrypted_content: The thought, where no content is sent: that of an answer of this server.
        id: Accepted, and not read.
        status: Accepted, and not read.
    """

    type: Literal["reasoning"]
    summary: Annotated[list[SummaryText], Field(fail_fast=True, max_length=_MAX_PARTS)]
    content: Annotated[list[ReasoningText], Field(fail_fast=True, max_length=_MAX_PARTS)] | None = None
    encrypted_content: Annotated[str | None, AfterValidator(_checked_encrypted_content)] = None
    id: _ItemId | None = None
    status: ItemStatus | None = None

    @property
    def text(self) -> str:
        """The whole thought."""
        if not self.content and self.encrypted_content:
            return text_of_encrypted_content(self.encrypted_content)
        return "".join(part.text for part in self.content or self.summary)


class ItemReference(StrictModel):
    """An item of a stored answer, in place of the item itself.

    Attributes:
        type: `item_reference`, also where it is left out.
        id: Of the item.
    """

    type: Literal["item_reference"] | None = None
    id: Annotated[str, Field(min_length=1, max_length=128)]


_KINDS: Final = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _kind(value: Any) -> Any:
    if isinstance(value, ItemReference):
        return "item_reference"
    if isinstance(value, BaseModel):
        return getattr(value, "type", None)
    if not isinstance(value, dict):
        return "message"
    # A reference may leave its type out, and then has an id alone.
    if value.get("type") is None and set(value) - {"type"} == {"id"}:
        return "item_reference"
    # So may a message; what has neither a type nor a role is refused as a message without a role.
    return value.get("type", "message")


def _of_known_kind(value: Any) -> Any:
    if isinstance(value, dict):
        # Clients dump an answer with null for whatever fields their version has: it says nothing.
        value = {name: one for name, one in value.items() if one is not None}
    if (kind := _kind(value)) not in _KINDS:
        raise ValueError(f"items of the type {str(kind)[:100]!r} are not supported here; expected: {', '.join(_KINDS)}")
    return value


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_kind),
    BeforeValidator(_of_known_kind),
]


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Items = Annotated[
    list[Item],
    Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS),
    BeforeValidator(_as_items, json_schema_input_type=str | list[Item]),
]
_ITEMS: Final[TypeAdapter[list[Item]]] = TypeAdapter(list[Item])


def parsed_items(documents: Iterable[Any]) -> list[Item]:
    """Items that are stored, of a request or of an answer."""
    return _ITEMS.validate_python(list(documents))


def item_documents(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Items as they are stored and listed: content as a list of parts."""
    found = []
    for item in items:
        document = item.model_dump(mode="json", exclude_none=True, by_alias=True)
        if isinstance(item, ReasoningItem) and document.pop("encrypted_content", None) and not item.content:
            # As text: what is stored can be read and searched.
            document["content"] = [{"type": "reasoning_text", "text": item.text}]
        if isinstance(item, MessageItem) and item.role == "assistant":
            # A plain text is short for the part that this role has.
            document["content"] = [
                {**part, "type": "output_text", "annotations": []} if part["type"] == "input_text" else part
                for part in document["content"]
            ]
        found.append(document)
    return found


def messages_of(
    instructions: str | None, items: Sequence[Item], num_before: int, *, before: str = "previous_response_id"
) -> tuple[Message, ...]:
    """The conversation of a request.

    Args:
        instructions: The system message before all others; None for none.
        items: Those before the request and of the request, in order, without references.
        num_before: How many of them are before the request.
        before: The parameter that names those before it.

    Raises:
        ApiError: A result without its call, a call without its result, or reasoning that nothing follows; and more
            items than a conversation may have.
    """
    if len(items) > MAX_ITEMS:
        message = f"{len(items):,} items with those before the request; expected: at most {MAX_ITEMS:,} in all"
        raise ApiError(400, message, param="input", code="invalid_value")
    item_path = _ItemPath(num_before, before)
    _check_calls(items, item_path)
    found = [Message(role="system", content=instructions)] if instructions is not None else []
    turn: Message | None = None
    for place, item in enumerate(items):
        # An earlier answer may have ended within its thought.
        if isinstance(item, ReasoningItem) and place >= num_before:
            _check_followed(items, place, item_path)
        if turn is not None and not _joins(turn, item):
            found.append(turn)
            turn = None
        if isinstance(item, CallOutputItem):
            found.append(Message(role="tool", content=item.text, name=item.name, tool_call_id=item.call_id))
        elif isinstance(item, MessageItem) and item.role != "assistant":
            found.append(Message(role=item.role, content=item.text))
        else:
            turn = _joined(turn or Message(role="assistant", content=""), item)
    return tuple(found if turn is None else [*found, turn])


@dataclass(frozen=True, slots=True)
class _ItemPath:
    """Where items are, for errors.

    Attributes:
        num_before: How many are before the request.
        before: The parameter that names those.
    """

    num_before: int
    before: str

    def name(self, place: int) -> str:
        """The parameter that holds the item of a place."""
        return self.before if place < self.num_before else f"input.{place - self.num_before}"


def _joins(turn: Message, item: Item) -> bool:
    """Whether an item belongs to a turn of the assistant that has begun."""
    if isinstance(item, CallItem):
        return True
    is_empty = not turn.content and not turn.tool_calls
    if isinstance(item, ReasoningItem):
        return is_empty
    return is_empty and isinstance(item, MessageItem) and item.role == "assistant"


def _joined(turn: Message, item: Item) -> Message:
    if isinstance(item, ReasoningItem):
        return turn.model_copy(update={"reasoning": "\n".join(filter(None, (turn.reasoning, item.text))) or None})
    if isinstance(item, CallItem):
        function = {"name": item.name, "arguments": arguments_sent_back(item.arguments)}
        call = {"id": item.call_id, "type": "function", "function": function}
        return turn.model_copy(update={"tool_calls": (*turn.tool_calls, call)})
    assert isinstance(item, MessageItem)
    return turn.model_copy(update={"content": item.text})


def _check_calls(items: Sequence[Item], item_path: _ItemPath) -> None:
    """Each call has a result behind it, and each result its call before it."""
    waiting: dict[str, int] = {}
    seen = set[str]()
    for place, item in enumerate(items):
        if isinstance(item, CallItem):
            if (fault := fault_of_text(item.arguments)) is not None:
                raise refusal(fault, f"{item_path.name(place)}.arguments")
            if item.call_id in seen:
                raise _wrong(
                    f"two calls have the call_id {item.call_id!r}", "a new one for each", item_path.name(place)
                )
            seen.add(item.call_id)
            waiting[item.call_id] = place
        elif isinstance(item, CallOutputItem) and waiting.pop(item.call_id, None) is None:
            came = f"No tool call found for function call output with call_id {item.call_id!r}"
            raise _wrong(came, "one output after the function_call that it answers", item_path.name(place))
    for call_id in waiting:
        message = f"No tool output found for function call {call_id!r}; expected: a function_call_output item for it"
        raise ApiError(400, message, param="input", code="invalid_value")


def _check_followed(items: Sequence[Item], place: int, item_path: _ItemPath) -> None:
    following = items[place + 1] if place + 1 < len(items) else None
    is_assistant = isinstance(following, MessageItem) and following.role == "assistant"
    if not (is_assistant or isinstance(following, CallItem | ReasoningItem)):
        message = "reasoning that nothing follows; expected: a message of the assistant or a call after it"
        raise ApiError(400, message, param=item_path.name(place), code="invalid_value")


def _wrong(came: str, expected: str, place: str) -> ApiError:
    return ApiError(400, f"{came}; expected: {expected}", param=f"{place}.call_id", code="invalid_value")
