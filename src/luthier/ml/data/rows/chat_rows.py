"""Rows as conversations: OpenAI's chat shape, and pairs of a request with an answer (prompt/completion, Alpaca).

Older fields of the chat shape (`functions`, `function_call`, role `function`) are read as the tools, tool calls and
role `tool` that replaced them. What an assistant thought is read as `reasoning_content`, `reasoning` or `thinking`, or
as a block of its content.

Sources: OpenAI, "Fine-tuning" guide and "Chat completions" reference (messages, tools, tool_calls, weight); TRL's
dataset formats (prompt and completion as text or as lists of messages); Stanford Alpaca (2023) for instruction, input
and output; axolotl's conversations and ms-swift's messages (`train` and `loss` of a turn).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final, Literal, cast

from luthier.core.conversation import Conversation, Message, Role
from luthier.ml.data.files.bad_field import (
    ABSENT,
    BadFieldError,
    EmptyAnswerError,
    check_text,
    name_of_type,
    require_text,
)
from luthier.ml.data.files.untrusted_input import StrictJsonError, strict_loads
from luthier.ml.data.rows.row_tools import list_of_objects, parse_tools, tools_of
from luthier.ml.inference.models.templates.thought_writing import FIELDS

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Fields that change what a turn means. Reading on without them would train something else than the file says.
_MEANINGFUL = (
    "refusal", "audio", "images", "image", "train_detail", "training_detail", "reasoning_train_detail",
    "reasoning_training_detail",
)  # fmt: skip
FLAGS: Final = ("train", "loss")
"""Whether a turn is learned, as axolotl and ms-swift write it; OpenAI writes `weight`."""
_TEXT_PARTS: Final = ("text", "input_text", "output_text")
"""Parts of a turn that are plain text: as chat completions name them, and as Responses name those of either side."""
_PYTHON_TURNS: Final = re.compile(r"\s*\[\{\s*'(?:role|content|from|value)'\s*:")


def chat_conversation(fields: dict[str, Any]) -> Conversation:
    """The conversation of a chat row; a text `system` beside the messages is their system turn.

    Raises:
        BadFieldError: at the first wrong value.
        EmptyAnswerError: an answer that is to be learned is empty.
    """
    tools = tools_of(fields)
    messages = parse_messages("messages", fields.get("messages"))
    check_learnable("messages", messages)
    return Conversation(messages=with_system(messages, fields.get("system")), tools=tools)


def chat_row(conversation: Conversation) -> dict[str, Any]:
    """The fields of a chat row that `chat_conversation` reads as this conversation."""
    row: dict[str, Any] = {
        "messages": [one.model_dump(mode="json", exclude_defaults=True) for one in conversation.messages]
    }
    return row | {"tools": list(conversation.tools)} if conversation.tools else row


def parse_messages(field: str, value: Any) -> tuple[Message, ...]:
    """A list of message objects, also as JSON text (CSV has no lists).

    Args:
        field: name of the field, for messages.
        value: its raw value.

    Raises:
        BadFieldError: at the first wrong value.
        EmptyAnswerError: an answer that is to be learned is empty.
    """
    messages: list[Message] = []
    for index, raw in enumerate(list_of_objects(field, value)):
        # The turns before are passed along: a tool's result must answer one of their calls.
        messages.append(_message(f"{field}[{index}]", raw, messages))
    return tuple(messages)


def check_learnable(field: str, messages: Sequence[Message]) -> None:
    """Check that a conversation has an answer that training can learn.

    Raises:
        BadFieldError: no assistant turn, or weight 0 on all of them.
    """
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        roles = ", ".join(message.role for message in messages[:10]) or "none"
        raise BadFieldError(field, ABSENT, f"has no assistant turn (roles: {roles})")
    if not any(message.is_learned for message in answers):
        raise BadFieldError(field, ABSENT, "has weight 0 on every assistant turn: nothing to learn")


def _message(where: str, raw: dict[str, Any], before: Sequence[Message]) -> Message:
    for name in _MEANINGFUL:
        if raw.get(name) is not None and raw[name] != []:
            raise BadFieldError(f"{where}.{name}", raw[name], "is not read by Luthier, and would be lost in silence")
    role = raw.get("role", ABSENT)
    if role not in _ROLES:
        raise BadFieldError(f"{where}.role", role, f"is not a known role; known: {', '.join(_ROLES)}")
    calls = _tool_calls(where, raw, role, len(before))
    weight = _weight(where, raw, role)
    _check_parts(f"{where}.content", raw.get("content"), is_learned=role == "assistant" and weight != 0)
    content = _content(f"{where}.content", raw.get("content", ABSENT), role, has_calls=bool(calls))
    reasoning = _reasoning(where, raw, role)
    if role == "assistant" and weight != 0 and not calls and not (content or "").strip():
        raise EmptyAnswerError(f"{where}.content", content)
    return Message(
        role=cast(Role, "tool" if role == "function" else role),
        content=content,
        name=check_text(f"{where}.name", raw["name"]) if raw.get("name") is not None else None,
        tool_calls=calls,
        tool_call_id=_call_id(where, raw, role, before),
        weight=weight,
        reasoning=reasoning,
        learn_reasoning=_learn_reasoning(f"{where}.learn_reasoning", raw.get("learn_reasoning"), role),
    )


def _reasoning(where: str, raw: dict[str, Any], role: str) -> str | None:
    """What the assistant thought, by any of its names; blocks of type thinking in the content are one, too."""
    content = raw.get("content")
    blocks = [part for part in content if _is_thought(part)] if isinstance(content, list) else []
    found = {f"{where}.{name}": raw[name] for name in FIELDS if raw.get(name) is not None}
    if blocks:
        texts = [check_text(f"{where}.content", part.get("thinking")) for part in blocks]
        found[f"{where}.content"] = "\n\n".join(texts)
    thought = None
    for field, value in found.items():
        if role != "assistant":
            raise BadFieldError(field, value, f"is on a turn of role {role}; only the assistant thinks")
        text = check_text(field, value)
        # Exports often write one thought under two names; two different ones are a contradiction.
        if thought is not None and text.strip() != thought.strip():
            raise BadFieldError(field, text, "says another thought than the same turn's other field of the kind")
        thought = text
    return thought if thought and thought.strip() else None


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "thinking"


def _learn_reasoning(field: str, value: Any, role: str) -> bool | None:
    if value is None:
        return None
    if role != "assistant":
        raise BadFieldError(field, value, f"is on a turn of role {role}; it is for assistant turns only")
    if not isinstance(value, bool):
        raise BadFieldError(field, value, "is not true or false")
    return value


def _content(field: str, value: Any, role: str, *, has_calls: bool) -> str | None:
    # OpenAI writes null content with tool calls.
    if (value is None or value is ABSENT) and role == "assistant" and has_calls:
        return None
    if value is ABSENT:
        raise BadFieldError(field, ABSENT, "is absent")
    if not isinstance(value, list):
        return check_text(field, value)
    parts = []
    for index, part in enumerate(value):
        if _is_thought(part):
            continue
        where = f"{field}[{index}]"
        kind = part.get("type", ABSENT) if isinstance(part, dict) else ABSENT
        if not isinstance(part, dict) or kind not in _TEXT_PARTS:
            shown = part if kind is ABSENT else kind
            raise BadFieldError(where, shown, "is not a text part; only text can be trained here, no images or audio")
        parts.append(check_text(f"{where}.text", part.get("text")))
    return "".join(parts)


def _weight(where: str, raw: dict[str, Any], role: str) -> Literal[0, 1] | None:
    """Whether a turn is learned, by any of its names; None where it says nothing."""
    found: Literal[0, 1] | None = None
    if (value := raw.get("weight")) is not None:
        if role != "assistant":
            raise BadFieldError(
                f"{where}.weight", value, f"is on a turn of role {role}; weight is for assistant turns only"
            )
        # bool is a subclass of int in Python: true would pass for 1.
        if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1):
            raise BadFieldError(f"{where}.weight", value, "is not 0 or 1")
        found = 1 if value else 0
    for name in FLAGS:
        if (value := raw.get(name)) is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise BadFieldError(f"{where}.{name}", value, "is not true or false")
        if role != "assistant":
            if value:
                reason = f"is on a turn of role {role}; only the assistant's turns are learned"
                raise BadFieldError(f"{where}.{name}", value, reason)
            continue
        if found is not None and bool(found) != bool(value):
            raise BadFieldError(f"{where}.{name}", value, "is the opposite of the same turn's other field of the kind")
        found = 1 if value else 0
    return found


def _check_parts(field: str, content: Any, *, is_learned: bool) -> None:
    """Refuse parts of a turn that say of themselves that they are learned where the turn is not, or the reverse."""
    for index, part in enumerate(content if isinstance(content, list) else ()):
        for name in ("weight", *FLAGS):
            value = part.get(name) if isinstance(part, dict) else None
            if value is not None and (not isinstance(value, bool | int | float) or bool(value) != is_learned):
                reason = "is about a part of a turn, and a turn is learned as a whole or not at all"
                raise BadFieldError(f"{field}[{index}].{name}", value, reason)


def _tool_calls(where: str, raw: dict[str, Any], role: str, index: int) -> tuple[dict[str, Any], ...]:
    field, value = f"{where}.tool_calls", raw.get("tool_calls")
    if raw.get("function_call") is not None:
        if value is not None:
            raise BadFieldError(f"{where}.function_call", raw["function_call"], "is given with tool_calls")
        field = f"{where}.function_call"
        # The old form has no id; the turn's index makes one that is unique in the conversation.
        value = [{"id": f"call_{index}", "type": "function", "function": raw["function_call"]}]
    if value is None or value == []:
        return ()
    if role != "assistant":
        raise BadFieldError(field, value, f"is on a turn of role {role}; only the assistant calls tools")
    return tuple(tool_call(f"{field}[{n}]", call) for n, call in enumerate(list_of_objects(field, value)))


def tool_call(field: str, raw: dict[str, Any]) -> dict[str, Any]:
    """One call as OpenAI writes it: type function, a name, and arguments that are a JSON object written as text.

    A name and arguments without the object around them, as many files write calls, are read as well.

    Raises:
        BadFieldError: another type, no name, or arguments that are not a JSON object.
    """
    kind, function = raw.get("type", "function"), raw.get("function")
    if function is None and "name" in raw:
        function = {name: raw[name] for name in ("name", "arguments") if name in raw}
    if kind != "function":
        raise BadFieldError(f"{field}.type", kind, "is not 'function'")
    if not isinstance(function, dict):
        raise BadFieldError(
            f"{field}.function", ABSENT if function is None else function, "is not an object with a name"
        )
    name = check_text(f"{field}.function.name", function.get("name"))
    if not name.strip():
        raise BadFieldError(f"{field}.function.name", name, "is empty")
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, dict):
        # Some exporters write the object itself; templates and the API expect text.
        arguments = json.dumps(arguments, ensure_ascii=False)
    text = check_text(f"{field}.function.arguments", arguments)
    try:
        parsed = strict_loads(text)
    except StrictJsonError as error:
        raise BadFieldError(f"{field}.function.arguments", text, f"is not JSON: {error.reason}") from error
    if not isinstance(parsed, dict):
        reason = f"is {name_of_type(parsed)} where a JSON object is expected"
        raise BadFieldError(f"{field}.function.arguments", text, reason)
    # In the order in which the server writes calls that are sent back.
    own_id = {} if raw.get("id") is None else {"id": check_text(f"{field}.id", raw["id"])}
    return {**own_id, "type": "function", "function": {"name": name, "arguments": text}}


def _call_id(where: str, raw: dict[str, Any], role: str, before: Sequence[Message]) -> str | None:
    calls = [call for message in before for call in message.tool_calls]
    if role == "function":
        # The old role `function` has no call id: it answers the last call.
        return calls[-1].get("id") if calls else None
    if raw.get("tool_call_id") is None:
        return None
    field = f"{where}.tool_call_id"
    if role != "tool":
        raise BadFieldError(field, raw["tool_call_id"], f"is on a turn of role {role}; it is for role tool only")
    call_id = check_text(field, raw["tool_call_id"])
    if call_id not in {call.get("id") for call in calls}:
        raise BadFieldError(field, call_id, "answers no tool call of the turns before it")
    return call_id


def prompt_completion_conversation(fields: dict[str, Any]) -> Conversation:
    """The conversation of a prompt/completion row: only the completion is learned.

    Assistant turns inside a prompt that is a list of messages are context (weight 0).

    Raises:
        BadFieldError: a field is absent or wrong, or a `label` marks the row as one for preference training.
        EmptyAnswerError: the completion is empty.
    """
    if wanted_of(fields.get("label")) is not None:
        reason = (
            "marks this as a row for preference training (objective kto): as plain pairs, bad answers would be learned "
            "too; if that is intended, map the field: completion=completion; for kto map label=label, too"
        )
        raise BadFieldError("label", fields["label"], reason)
    messages = with_system((*prompt_of(fields), *completion_of(fields, "completion")), fields.get("system"))
    check_learnable("completion", messages)
    return Conversation(messages=messages, tools=parse_tools("tools", fields.get("tools")))


def wanted_of(label: Any) -> bool | None:
    """What a label of preference training says: true or false, also as a word, as tables write it; None for others."""
    if isinstance(label, bool):
        return label
    word = label.strip().lower() if isinstance(label, str) else ""
    return word == "true" if word in ("true", "false") else None


_GOOD: Final = frozenset(("1", "1.0", "true", "good", "desirable", "chosen", "yes"))
_BAD: Final = frozenset(("0", "0.0", "-1", "-1.0", "false", "bad", "undesirable", "rejected", "no"))


def judged_of(label: Any) -> bool | None:
    """As `wanted_of`, with the numbers 1, 0 and -1 and words for good and bad, which may also be names of classes."""
    if not isinstance(label, str | int | float):  # True is an int
        return None
    word = str(label).strip().lower()
    return True if word in _GOOD else False if word in _BAD else None


def turns_in_text(field: str, value: Any) -> Any:
    """The list of messages that a text holds as JSON, as tables have it; any other value unchanged.

    Raises:
        BadFieldError: it is such a list as Python prints it, which nothing reads safely and a model would learn as it
            is.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    if _PYTHON_TURNS.match(value):
        reason = (
            "is a list of messages as Python prints it, which is not JSON: write the file as JSONL or Parquet, or the "
            "column by json.dumps"
        )
        raise BadFieldError(field, value, reason)
    try:
        parsed = strict_loads(value)
    except StrictJsonError:
        return value
    is_turns = isinstance(parsed, list) and all(
        isinstance(one, dict) and {"role", "content"} <= set(one) for one in parsed
    )
    return parsed if is_turns else value


def prompt_of(fields: dict[str, Any]) -> tuple[Message, ...]:
    """The turns of the field `prompt`, a text or a list of messages, none of them learned.

    Raises:
        BadFieldError: it is absent, empty or wrong, or requests to learn one of its turns.
    """
    value = turns_in_text("prompt", fields.get("prompt", ABSENT))
    if not isinstance(value, list):
        text = require_text(fields, "prompt")
        if not text.strip():
            raise BadFieldError("prompt", text, "is empty; for text without a prompt use rows with the one field text")
        return (Message(role="user", content=text),)
    context = []
    for index, message in enumerate(parse_messages("prompt", as_context(value))):
        if message.role == "assistant" and message.weight == 1:
            raise BadFieldError(f"prompt[{index}].weight", 1, "requests to learn a turn of the prompt")
        context.append(message)
    return tuple(context)


def as_context(messages: list[Any]) -> list[Any]:
    """Raw messages with weight 0 on turns of the assistant without a weight."""
    return [
        {**message, "weight": 0}
        if isinstance(message, dict) and message.get("role") == "assistant" and message.get("weight") is None
        else message
        for message in messages
    ]


def completion_of(fields: dict[str, Any], field: str) -> tuple[Message, ...]:
    """The turns of a completion, a text or a list of messages.

    Raises:
        BadFieldError: it is absent or wrong, or holds turns of other roles than assistant and tool.
        EmptyAnswerError: it is empty.
    """
    value = turns_in_text(field, fields.get(field, ABSENT))
    if not isinstance(value, list):
        return (_answer(fields, field),)
    messages = parse_messages(field, value)
    for index, message in enumerate(messages):
        if message.role not in ("assistant", "tool"):
            reason = "is in a completion, which may contain turns of the assistant and of tools only"
            raise BadFieldError(f"{field}[{index}].role", message.role, reason)
    return messages


def alpaca_conversation(fields: dict[str, Any]) -> Conversation:
    """The conversation of an Alpaca row: instruction, blank line, input where there is one.

    A `history` of pairs of a request and an answer comes before it; its answers are learned, too, as in LLaMA-Factory.

    Raises:
        BadFieldError: a field is absent or wrong.
        EmptyAnswerError: the output, or an answer of the history, is empty.
    """
    earlier = _history(fields.get("history"))
    instruction = require_text(fields, "instruction")
    given = check_text("input", fields["input"]) if fields.get("input") is not None else ""
    request = f"{instruction}\n\n{given}" if given.strip() else instruction
    if not request.strip():
        raise BadFieldError("instruction", instruction, "is empty, and so is input")
    messages = (*earlier, Message(role="user", content=request), _answer(fields, "output"))
    return Conversation(messages=with_system(messages, fields.get("system")))


def _history(value: Any) -> tuple[Message, ...]:
    """The turns of pairs of a request and an answer, also as JSON text."""
    if isinstance(value, str) and value.strip():
        try:
            value = strict_loads(value)
        except StrictJsonError as error:
            reason = f"is text that is not JSON where a list of pairs is expected: {error.reason}"
            raise BadFieldError("history", value, reason) from error
    if not value:
        return ()
    if not isinstance(value, list):
        raise BadFieldError("history", value, f"is {name_of_type(value)} where a list of pairs is expected")
    messages: list[Message] = []
    for index, pair in enumerate(value):
        where = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadFieldError(where, pair, "is no pair of a request and an answer")
        request, answer = (check_text(f"{where}[{place}]", text) for place, text in enumerate(pair))
        if not answer.strip():
            raise EmptyAnswerError(f"{where}[1]", answer)
        messages += [Message(role="user", content=request), Message(role="assistant", content=answer)]
    return tuple(messages)


def _answer(fields: dict[str, Any], field: str) -> Message:
    text = require_text(fields, field)
    if not text.strip():
        raise EmptyAnswerError(field, text)
    return Message(role="assistant", content=text)


def with_system(messages: tuple[Message, ...], system: Any) -> tuple[Message, ...]:
    """The messages with a system turn before them, where the row has a `system` text that is not blank.

    Raises:
        BadFieldError: the row has such a text, and begins with a system turn that says something else.
    """
    if system is None or not check_text("system", system).strip():
        return messages
    if messages and messages[0].role in ("system", "developer"):
        if (messages[0].content or "").strip() == system.strip():
            return messages
        reason = "is given with a first turn that is a system turn already, and says something else"
        raise BadFieldError("system", system, reason)
    return (Message(role="system", content=system), *messages)


def plain_text(fields: dict[str, Any]) -> str:
    """The text of a plain-text row.

    Raises:
        EmptyAnswerError: it is empty; a kind of BadFieldError.
    """
    text = require_text(fields, "text")
    if not text.strip():
        raise EmptyAnswerError("text", text, "empty")
    return text
