"""When two texts count as the same: NFC, case folded, white space folded (Unicode Standard, Annex #15 and 3.13)."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from luthier.core.conversation import Message
from luthier.core.dataset import Example
from luthier.core.ids import canonical_json


def normalised(text: str) -> str:
    """The text in NFC, case folded, each run of white space one space, none at the ends."""
    # Folding may leave letters decomposed, so NFC is applied again.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def content_key(example: Example) -> str:
    """Digest of the content of an example, independent of its id and group: every turn with its role, or the text.

    Both sides of a preference count, and whether a completion is desired. Thoughts, weights and tools do not: a row
    that says the same after another thought, or beside other tools, gives away as much (`learned_key`).
    """
    if example.conversation is None:
        return normalised_digest(example.text or "")
    return _content_key(example, _turns(example.conversation.messages))


class RowKeys(NamedTuple):
    """The keys of a row.

    Attributes:
        content: as `content_key`.
        learned: as `learned_key`.
        prompt: as `prompt_key`.
        tools: as `tools_key`.
    """

    content: str
    learned: str | None
    prompt: str | None
    tools: str | None


def keys_of(example: Example) -> RowKeys:
    """All keys of an example, for which each turn is normalised once."""
    if (conversation := example.conversation) is None:
        return RowKeys(content_key(example), learned_key(example), None, None)
    turns, last = _turns(conversation.messages), conversation.last_answer
    prompt = None if last is None else _digest(turns[:last])
    return RowKeys(_content_key(example, list(turns)), learned_key(example), prompt, tools_key(example))


def _content_key(example: Example, parts: list[str]) -> str:
    """The digest of the turns, to which it adds what else counts."""
    if example.rejected is not None:
        parts += ["rejected", *_turns(example.rejected.messages)]
    if example.is_wanted is not None:
        parts.append(f"wanted: {example.is_wanted}")
    return _digest(parts)


def normalised_digest(text: str) -> str:
    """Digest of a text after normalisation, for rows that are not mapped to a shape."""
    return _digest(["text", normalised(text)])


def learned_key(example: Example) -> str | None:
    """Digest of what training learns of a row beside what it says: thoughts, which answers count, and the tools.

    Both sides of a preference count. None where there are no thoughts and no tools, and every answer is learned.
    """
    sides = [side for side in (example.conversation, example.rejected) if side is not None]
    parts = [normalised(message.reasoning or "") + _mark(message) for side in sides for message in side.messages]
    if any(parts) and (tools := tools_key(example)) is not None:
        return _digest([*parts, tools])
    return _digest(parts) if any(parts) else tools_key(example)


def tools_key(example: Example) -> str | None:
    """Digest of the tools that the assistant may call, as they are written; None without tools.

    The same question with other tools is another task: the right answer depends on what can be called.
    """
    # Both sides of a preference have the same tools.
    tools = example.conversation.tools if example.conversation is not None else ()
    # default: tables may hold values that JSON does not have.
    return _digest([json.dumps(tools, sort_keys=True, default=str)]) if tools else None


def _mark(message: Message) -> str:
    # A line feed, which no normalised text has.
    return "\nnot learned" if message.role == "assistant" and not message.is_learned else ""


def prompt_key(example: Example) -> str | None:
    """Digest of the turns before the last learned answer, without tools.

    None for plain text, and where no answer is learned.
    """
    return _digest(_turns(example.prompt.messages)) if example.prompt is not None else None


def _turns(messages: Sequence[Message]) -> list[str]:
    turns = []
    for message in messages:
        calls = "".join(canonical_json(call.get("function", {})) for call in message.tool_calls)
        turns.append(f"{message.role}: {normalised((message.content or '') + calls)}")
    return turns


def answer_digests(example: Example) -> list[int]:
    """For each answer of a conversation a digest of all turns up to it, in 63 bits; empty for plain text.

    The last one is of the whole conversation where that ends with an answer.
    """
    if example.conversation is None:
        return []
    messages, found, so_far = example.conversation.messages, [], hashlib.sha256()
    for message, turn in zip(messages, _turns(messages), strict=True):
        so_far.update(turn.encode("utf-8", "surrogatepass") + b"\0")
        if message.role == "assistant":
            found.append(int.from_bytes(so_far.digest()[:8], "big") >> 1)
    return found


def _digest(parts: list[str]) -> str:
    # NUL, which no normalised text has, keeps two turns from reading like one.
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
