"""Tools for models whose chat template does not know them: described in the system message.

The instructions, and the form of earlier calls and their results in the conversation, are always the same:

    system      ...its own text, if there is one...
                You may call these functions. To call one, write:
                <tool_call>{"name": ..., "arguments": {...}}</tool_call>
                and nothing after it; its result comes in the next message.
                Functions, one a line, with the JSON schema of their arguments:
                {"name": ..., "description": ..., "parameters": {...}}
    assistant   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    user        <tool_response>...</tool_response>
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from luthier.core.conversation import Conversation, Message

if TYPE_CHECKING:
    from luthier.ml.inference.tool_calls import ToolForm

TOOLS_PROMPT: Final = """\
You may call these functions. To call one, write:
{example}
and nothing after it; its result comes in the next message.
Functions, one a line, with the JSON schema of their arguments:
{functions}"""
"""What the system text says of tools. example: of a call. functions: one a line."""
TOOL_RESPONSE: Final = ("<tool_response>", "</tool_response>")
"""What surrounds the result of a call."""


def with_tools_as_text(conversation: Conversation, form: ToolForm) -> Conversation:
    """The same conversation in messages of text alone; unchanged where it has to do with no tool."""
    messages = [_as_text(message, form) for message in conversation.messages]
    if conversation.tools:
        functions = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in conversation.tools)
        words = TOOLS_PROMPT.format(example=form.written("...", "{...}", quotes=False), functions=functions)
        if messages and messages[0].role in ("system", "developer"):
            content = f"{messages[0].content or ''}\n\n{words}"
            messages[0] = messages[0].model_copy(update={"content": content})
        else:
            messages.insert(0, Message(role="system", content=words))
    # Without `tools`: a template that knows them must not write them a second time.
    return Conversation(messages=tuple(messages))


def _as_text(message: Message, form: ToolForm) -> Message:
    if message.role in ("tool", "function"):
        begin, end = TOOL_RESPONSE
        # As a user's turn: templates without tools refuse the role `tool`.
        return Message(role="user", content=f"{begin}{message.content or ''}{end}")
    if not message.tool_calls:
        return message
    calls = [
        form.written(call["function"]["name"], call["function"].get("arguments") or "{}") for call in message.tool_calls
    ]
    parts = [message.content] if message.content else []
    return message.model_copy(update={"content": "\n".join([*parts, *calls]), "tool_calls": ()})
