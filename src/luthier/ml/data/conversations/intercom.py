"""Conversations as Intercom exports them: JSON with `source` and `conversation_parts`.

Contacts are the user, teammates the assistant. Notes, messages of bots and what the program writes itself (who was
assigned, what was closed) are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from luthier.ml.data.conversations.json_records import json_records, objects, text_of_html
from luthier.ml.data.conversations.turns import Assistants, Exchange, Role, Tally, Turn
from luthier.ml.data.files.source import Source

_SPOKEN: Final = ("comment", "open", "close", "")
"""Parts with what somebody wrote; an answer may close a conversation, and a question open it again."""
_ASSISTANTS: Final = ("admin", "team")


def begins_with_intercom(head: bytes) -> bool:
    """Whether the beginning of a JSON file names what conversations of Intercom have."""
    return b'"conversation_parts"' in head and b'"author"' in head


def intercom_exchanges(source: Source, name: str, chosen: Assistants, tally: Tally) -> Iterator[Exchange]:
    """Each conversation of an export.

    Args:
        source: the export.
        name: what people call it.
        chosen: who answers: names, addresses or ids; none takes the teammates.
        tally: counts what is left out.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    conversations, _ = json_records(source, "conversations")
    for number, one in enumerate(conversations, start=1):
        if not isinstance(one, dict):
            tally.left_out["conversations that cannot be read"] += 1
            continue
        # Older exports call the first message `conversation_message`.
        first = objects([one.get("source")]) or objects([one.get("conversation_message")])
        held = one.get("conversation_parts")
        parts = objects(held.get("conversation_parts") if isinstance(held, dict) else held)
        turns = tuple(turn for part in (*first, *parts) if (turn := _turn(part, chosen, tally)) is not None)
        title = one.get("title") or (first[0].get("subject") if first else "")
        yield Exchange(" ".join(text_of_html(title).split()), f"{name}, conversation {one.get('id', number)}", turns)


def _turn(part: Mapping[str, Any], chosen: Assistants, tally: Tally) -> Turn | None:
    """A message; None for what is none, or is left out."""
    author = part.get("author")
    author = author if isinstance(author, dict) else {}
    kind, who = str(part.get("part_type") or ""), str(author.get("type") or "")
    shown = str(author.get("email") or author.get("name") or f"id {author.get('id', '')}")
    is_chosen = chosen.match(str(author.get("id") or ""), str(author.get("email") or ""), str(author.get("name") or ""))
    if "note" in kind:
        tally.parts_left_out["private notes"] += 1
        return None
    text = text_of_html(part.get("body"))
    if attached := objects(part.get("attachments")):
        tally.parts_left_out["attachments"] += len(attached)
    if kind not in _SPOKEN:
        tally.parts_left_out["automatic messages"] += bool(text)
        return None
    if who == "bot" and not is_chosen:
        tally.parts_left_out["messages of bots"] += 1
        return None
    if not text and kind != "comment":
        return None
    role: Role = "assistant" if (is_chosen if chosen else who in _ASSISTANTS) else "user"
    return Turn(shown, role, text)
