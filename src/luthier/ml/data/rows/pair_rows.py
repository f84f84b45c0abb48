"""Rows that pair a request with an answer (prompt/completion, Alpaca) become conversations of a user and an assistant.

Sources: TRL's dataset formats (prompt and completion as text or as lists of messages); Stanford Alpaca (2023) for
instruction, input and output.
"""

from __future__ import annotations

from typing import Any

from luthier.core.conversation import Conversation, Message
from luthier.ml.data.files.bad_field import ABSENT, BadFieldError, EmptyAnswerError, check_text, require_text
from luthier.ml.data.rows.chat_rows import check_learnable, parse_messages, parse_tools


def prompt_completion_conversation(fields: dict[str, Any]) -> Conversation:
    """The conversation of a prompt/completion row: only the completion is learned.

    Assistant turns inside a prompt that is a list of messages are context (weight 0).

    Raises:
        BadFieldError: a field is absent or wrong, or a `label` marks the row as one for preference training.
        EmptyAnswerError: the completion is empty.
    """
    if isinstance(fields.get("label"), bool):
        reason = (
            "marks this as a row for preference training (objective kto): as plain pairs, bad answers would be learned "
            "too; if that is meant, map the field: completion=completion; for kto map label=label, too"
        )
        raise BadFieldError("label", fields["label"], reason)
    messages = with_system((*prompt_of(fields), *completion_of(fields, "completion")), fields.get("system"))
    check_learnable("completion", messages)
    return Conversation(messages=messages, tools=parse_tools("tools", fields.get("tools")))


def prompt_of(fields: dict[str, Any]) -> tuple[Message, ...]:
    """The turns of the field `prompt`, a text or a list of messages, none of them learned.

    Raises:
        BadFieldError: it is absent, empty or wrong, or asks to learn one of its turns.
    """
    value = fields.get("prompt", ABSENT)
    if not isinstance(value, list):
        text = require_text(fields, "prompt")
        if not text.strip():
            raise BadFieldError("prompt", text, "is empty; for text without a prompt use rows with the one field text")
        return (Message(role="user", content=text),)
    context = []
    for index, message in enumerate(parse_messages("prompt", as_context(value))):
        if message.role == "assistant" and message.weight == 1:
            raise BadFieldError(f"prompt[{index}].weight", 1, "asks to learn a turn of the prompt")
        context.append(message)
    return tuple(context)


def as_context(messages: list[Any]) -> list[Any]:
    """Raw messages with weight 0 on turns of the assistant that say nothing of their weight."""
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
    value = fields.get(field, ABSENT)
    if not isinstance(value, list):
        return (_answer(fields, field),)
    messages = parse_messages(field, value)
    for index, message in enumerate(messages):
        if message.role not in ("assistant", "tool"):
            reason = "stands in a completion, which may hold turns of the assistant and of tools only"
            raise BadFieldError(f"{field}[{index}].role", message.role, reason)
    return messages


def alpaca_conversation(fields: dict[str, Any]) -> Conversation:
    """The conversation of an Alpaca row: instruction, blank line, input where there is one.

    Raises:
        BadFieldError: a field is absent or wrong, or the row has a history.
        EmptyAnswerError: the output is empty.
    """
    if fields.get("history"):
        reason = "holds earlier turns, which the Alpaca shape does not define; write the row in the chat shape"
        raise BadFieldError("history", fields["history"], reason)
    instruction = require_text(fields, "instruction")
    given = check_text("input", fields["input"]) if fields.get("input") is not None else ""
    request = f"{instruction}\n\n{given}" if given.strip() else instruction
    if not request.strip():
        raise BadFieldError("instruction", instruction, "is empty, and so is input")
    messages = (Message(role="user", content=request), _answer(fields, "output"))
    return Conversation(messages=with_system(messages, fields.get("system")))


def _answer(fields: dict[str, Any], field: str) -> Message:
    text = require_text(fields, field)
    if not text.strip():
        raise EmptyAnswerError(field, text)
    return Message(role="assistant", content=text)


def with_system(messages: tuple[Message, ...], system: Any) -> tuple[Message, ...]:
    """The messages with a system turn before them, where the row has a `system` text that is not blank."""
    if system is None or not check_text("system", system).strip():
        return messages
    if messages and messages[0].role in ("system", "developer"):
        raise BadFieldError("system", system, "stands beside a first turn that is a system turn already")
    return (Message(role="system", content=system), *messages)


def plain_text(fields: dict[str, Any]) -> str:
    """The text of a plain-text row.

    Raises:
        BadFieldError: it is empty.
    """
    text = require_text(fields, "text")
    if not text.strip():
        raise EmptyAnswerError("text", text, "empty")
    return text
