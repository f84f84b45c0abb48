"""Conversations as people export them from ChatGPT and Claude (`conversations.json`), as rows of the chat shape.

ChatGPT exports a tree of turns, since a question can be asked again; the branch that was shown last is taken
(`current_node` and its parents). Thoughts, and turns that the program hides, are left out. A conversation with
pictures, files, tools or code that was run is a problem: its texts alone would mean something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.ml.data.files.bad_field import shorten

NOTES: Final[Mapping[str, str]] = {
    "mapping": "an export of ChatGPT: the branch of each conversation that was shown last, without thoughts",
    "chat_messages": "an export of Claude, without thoughts",
}
"""How the rows are read, by the field that has the turns."""
_UNSEEN: Final = ("thoughts", "reasoning_recap", "user_editable_context", "model_editable_context")
_SENDERS: Final = {"human": "user", "assistant": "assistant"}


class _UnreadableTurnError(Exception):
    """A turn with something other than text; its message says what."""


def export_field(fields: Mapping[str, Any]) -> str | None:
    """The field that has the turns of an exported conversation; None for any other row."""
    nodes = fields.get("mapping")
    if isinstance(nodes, dict) and "current_node" in fields and "messages" not in fields:
        return "mapping"
    if isinstance(fields.get("chat_messages"), list) and "messages" not in fields:
        return "chat_messages"
    return None


def exported_chat(row: Row) -> Row | RowProblem:
    """A row of an export as a chat row with its title; any other row unchanged."""
    name = export_field(row.fields)
    if name is None:
        return row
    turns = _of_chatgpt(row.fields) if name == "mapping" else _of_claude(row.fields)
    messages: list[dict[str, str]] = []
    try:
        for role, text in turns:
            if not text.strip():
                continue
            # An answer that was continued, or came in parts, is one turn.
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += f"\n\n{text}"
            else:
                messages.append({"role": role, "content": text})
    except _UnreadableTurnError as error:
        reason = f"has a turn with {error}, and only text can be trained here: remove the conversation"
        return RowProblem(row.file, row.line, name, shorten(_title(row.fields)), reason)
    # A last question without an answer, as of a chat that was broken off, teaches nothing.
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        reason = "has no answer: remove the conversation"
        return RowProblem(row.file, row.line, name, shorten(_title(row.fields)), reason)
    return Row(row.file, row.line, {"title": _title(row.fields), "messages": messages})


def _title(fields: Mapping[str, Any]) -> str:
    return str(fields.get("title") or fields.get("name") or "")


def _of_chatgpt(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    nodes, name, seen = fields["mapping"], fields.get("current_node"), set[str]()
    branch: list[Mapping[str, Any]] = []
    # A damaged file may have a circle.
    while isinstance(name, str) and name not in seen and isinstance(node := nodes.get(name), dict):
        seen.add(name)
        if isinstance(message := node.get("message"), dict):
            branch.append(message)
        name = node.get("parent")
    for message in reversed(branch):
        author, content, about = (
            found if isinstance(found := message.get(key), dict) else {} for key in ("author", "content", "metadata")
        )
        role, kind = str(author.get("role")), str(content.get("content_type"))
        if kind in _UNSEEN or about.get("is_visually_hidden_from_conversation"):
            continue
        text = _text_of_parts(content.get("parts"))
        if role == "system" and not text.strip():
            continue
        if role == "tool" or str(message.get("recipient") or "all") != "all" or kind in ("code", "execution_output"):
            raise _UnreadableTurnError("a call of a tool, or its result")
        if role not in ("system", "user", "assistant") or kind not in ("text", "multimodal_text"):
            raise _UnreadableTurnError(f"content of type {kind}")
        yield role, text


def _text_of_parts(parts: Any) -> str:
    texts = []
    for part in parts if isinstance(parts, list) else ():
        if not isinstance(part, str):
            raise _UnreadableTurnError("a picture or a file")
        texts.append(part)
    return "\n".join(texts)


def _of_claude(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for message in fields["chat_messages"]:
        if not isinstance(message, dict):
            raise _UnreadableTurnError("nothing that can be read")
        role, text = _SENDERS.get(str(message.get("sender"))), message.get("text")
        blocks = message.get("content")
        kinds = {str(one.get("type")) for one in blocks if isinstance(one, dict)} if isinstance(blocks, list) else set()
        if message.get("attachments") or message.get("files"):
            raise _UnreadableTurnError("a picture or a file")
        if kinds - {"text", "thinking"}:
            raise _UnreadableTurnError("a call of a tool, or its result")
        if isinstance(blocks, list) and "text" in kinds:
            # `text` may have the thoughts as well.
            text = "".join(
                str(one.get("text") or "") for one in blocks if isinstance(one, dict) and one.get("type") == "text"
            )
        if role is None or not isinstance(text, str):
            raise _UnreadableTurnError("nothing that can be read")
        yield role, text
