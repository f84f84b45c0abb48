"""Tools, calls and their results as text of a conversation, for templates that have no place for them (see `forms`).

Templates that demand that users and the assistant take turns get results that follow each other, and a user's text
behind them, as one turn. Others get a turn for each.
"""

from __future__ import annotations

import json
from typing import Final

from luthier.core.conversation import Conversation, Message
from luthier.ml.inference.tool_calls.forms import ToolForm

TOOLS_PROMPT: Final = """\
You may call these functions. To call one, write:
{example}
and nothing after it; its result comes in the next message.
Functions, one a line, with the JSON schema of their arguments:
{functions}"""
"""The system text that describes tools. example: of a call. functions: one per line."""
TOOL_RESPONSE: Final = ("<tool_response>", "</tool_response>")
"""A tool result with its delimiters."""
_RESULTS: Final = ("tool", "function")


def with_tools_as_text(conversation: Conversation, form: ToolForm) -> Conversation:
    """The same conversation as plain text messages; unchanged if it involves no tools."""
    messages = [_as_text(message, form) for message in conversation.messages]
    if form.joins_results:
        messages = _joined(messages, [message.role in _RESULTS for message in conversation.messages])
    if conversation.tools:
        functions = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in conversation.tools)
        words = TOOLS_PROMPT.format(example=form.written("...", "{...}", quotes=False), functions=functions)
        if messages and messages[0].role in ("system", "developer"):
            content = f"{messages[0].content or ''}\n\n{words}"
            messages[0] = messages[0].model_copy(update={"content": content})
        else:
            messages.insert(0, Message(role="system", content=words))
    # Without `tools`: a template that supports them must not write them again.
    return Conversation(messages=tuple(messages))


def _joined(messages: list[Message], are_results: list[bool]) -> list[Message]:
    """The messages with results that follow each other, and a user's turn behind them, as one turn."""
    found, was_result = list[Message](), False
    for message, is_result in zip(messages, are_results, strict=True):
        if was_result and message.role == "user":
            content = f"{found[-1].content or ''}\n{message.content or ''}"
            found[-1] = found[-1].model_copy(update={"content": content})
        else:
            found.append(message)
        was_result = is_result
    return found


def _as_text(message: Message, form: ToolForm) -> Message:
    if message.role in _RESULTS:
        begin, end = TOOL_RESPONSE
        # As a user turn: templates without tools reject the role `tool`.
        return Message(role="user", content=f"{begin}{message.content or ''}{end}")
    if not message.tool_calls:
        return message
    calls = [
        form.written(call["function"]["name"], call["function"].get("arguments") or "{}") for call in message.tool_calls
    ]
    parts = [message.content] if message.content else []
    return message.model_copy(update={"content": "\n".join([*parts, *calls]), "tool_calls": ()})


def with_calls_as_text(conversation: Conversation, form: ToolForm) -> Conversation:
    """The same conversation with calls as text of their turns, for templates that write tools and no calls."""
    messages, num_before = list[Message](), 0
    for message in conversation.messages:
        if message.tool_calls:
            text = form.calls_text(message.tool_calls, num_before)
            between = "\n" if message.content and form.native is None else ""
            changed = {"content": f"{message.content or ''}{between}{text}", "tool_calls": ()}
            num_before += len(message.tool_calls)
            messages.append(message.model_copy(update=changed))
        else:
            messages.append(message)
    return conversation.model_copy(update={"messages": tuple(messages)})
