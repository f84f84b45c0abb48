"""A conversation as the templates of other runtimes are given it."""

from __future__ import annotations

from typing import Any

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import TemplateError
from luthier.core.json_limits import loads
from luthier.core.library_errors import library_reason
from luthier.ml.inference.models.thought_writing import FIELDS


def message_documents(conversation: Conversation, *, parsed_arguments: bool) -> list[dict[str, Any]]:
    """The messages in OpenAI's format, without fields that only training reads.

    Thoughts are given under every name that templates read them by.

    Args:
        conversation: the messages.
        parsed_arguments: arguments of tool calls as objects, as templates want them; else as JSON text, as in HTTP.

    Raises:
        TemplateError: arguments are no JSON.
    """
    return [_document(message, parsed_arguments) for message in conversation.messages]


def _document(message: Message, parsed_arguments: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.reasoning is not None:
        document |= dict.fromkeys(FIELDS, message.reasoning)
    if message.name is not None:
        document["name"] = message.name
    if message.tool_call_id is not None:
        document["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        document["tool_calls"] = [_call(call, parsed_arguments) for call in message.tool_calls]
    return document


def _call(call: dict[str, Any], parsed_arguments: bool) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments") or "{}"
    if parsed_arguments and isinstance(arguments, str):
        try:
            arguments = loads(arguments)
        except ValueError as error:
            raise TemplateError(
                f"a call of {function.get('name')!r} with arguments {arguments[:80]!r}: {library_reason(error)}",
                expected="arguments as JSON text",
                do="repair the row",
            ) from error
    return {**call, "function": {**function, "arguments": arguments}}
