"""Tickets as Zendesk exports them: JSON or one JSON object a line, each ticket with its `comments`, as conversations.

The requester is the user. Who else has written is decided by the role of the export's list of `users`, else everybody
but the requester and those in copy answers as the assistant. Private notes, automatic messages and deleted tickets
are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from luthier.ml.data.conversations.json_records import json_records, objects, text_of_html
from luthier.ml.data.conversations.quoted_text import own_text
from luthier.ml.data.conversations.turns import Assistants, Exchange, Role, Tally, Turn
from luthier.ml.data.files.source import Source

_AUTOMATIC_CHANNELS: Final = ("rule", "system", "automatic")
_COPIED: Final = ("collaborator_ids", "email_cc_ids")


def begins_with_tickets(head: bytes) -> bool:
    """Whether the beginning of a JSON file names what tickets with comments have."""
    return b'"comments"' in head and b'"author_id"' in head and (b'"requester_id"' in head or b'"requester"' in head)


def zendesk_exchanges(source: Source, name: str, chosen: Assistants, tally: Tally) -> Iterator[Exchange]:
    """Each ticket as a conversation.

    Args:
        source: the export.
        name: what people call it.
        chosen: who answers: names, addresses or ids; none goes by the roles of the export.
        tally: counts what is left out.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    tickets, document = json_records(source, "tickets")
    users = {str(one.get("id")): one for one in objects(document.get("users"))}
    for number, ticket in enumerate(tickets, start=1):
        if not isinstance(ticket, dict):
            tally.left_out["conversations that cannot be read"] += 1
            continue
        if isinstance(inner := ticket.get("ticket"), dict):
            ticket = {"comments": ticket.get("comments"), **inner}
        if ticket.get("status") == "deleted":
            tally.left_out["deleted tickets"] += 1
            continue
        comments = objects(ticket.get("comments"))
        if not comments:
            tally.left_out["tickets without comments"] += 1
            continue
        # In the order of time: the API gives them so, and some exports the other way round.
        comments.sort(key=lambda one: str(one.get("created_at") or ""))
        turns = tuple(_turns(ticket, comments, users, chosen, tally))
        title = str(ticket.get("raw_subject") or ticket.get("subject") or "")
        yield Exchange(" ".join(title.split()), f"{name}, ticket {ticket.get('id', number)}", turns)


def _turns(
    ticket: Mapping[str, Any],
    comments: Iterable[Mapping[str, Any]],
    users: Mapping[str, Mapping[str, Any]],
    chosen: Assistants,
    tally: Tally,
) -> Iterator[Turn]:
    people = dict(users)
    for key in ("requester", "assignee", "submitter"):
        if isinstance(person := ticket.get(key), dict) and "id" in person:
            people.setdefault(str(person["id"]), person)
    requester = str(ticket.get("requester_id") or _id_of(ticket.get("requester")))
    answering = {str(ticket.get("assignee_id") or _id_of(ticket.get("assignee")))} - {""}
    lists = [found for key in _COPIED if isinstance(found := ticket.get(key), list)]
    copied = {str(one) for found in lists for one in found if not isinstance(one, dict)} - answering
    for comment in comments:
        author = str(comment.get("author_id") or _id_of(comment.get("author")))
        via = comment.get("via")
        channel = str(via.get("channel")) if isinstance(via, dict) else ""
        if _is_private(comment):
            tally.parts_left_out["private notes"] += 1
            continue
        if author in ("-1", "") or channel in _AUTOMATIC_CHANNELS:
            tally.parts_left_out["automatic messages"] += 1
            continue
        if comment.get("type") == "VoiceComment":
            tally.parts_left_out["notes of telephone calls"] += 1
            continue
        if isinstance(attached := comment.get("attachments"), list) and attached:
            tally.parts_left_out["attachments"] += len(attached)
        person = people.get(author, {})
        text = _text(comment)
        yield Turn(
            str(person.get("email") or person.get("name") or f"id {author}"),
            _role(author, person, requester, copied, chosen),
            own_text(text) if channel == "email" else text,
        )


def _is_private(comment: Mapping[str, Any]) -> bool:
    """Notes among agents. Text, as exports by way of a table write it, counts, too."""
    return str(comment.get("public", True)).strip().lower() in ("false", "0", "no")


def _role(author: str, person: Mapping[str, Any], requester: str, copied: Iterable[str], chosen: Assistants) -> Role:
    if chosen:
        is_chosen = chosen.match(author, str(person.get("email") or ""), str(person.get("name") or ""))
        return "assistant" if is_chosen else "user"
    if author == requester:
        return "user"
    if (role := str(person.get("role") or "")) in ("end-user", "agent", "admin"):
        return "user" if role == "end-user" else "assistant"
    return "user" if author in copied else "assistant"


def _text(comment: Mapping[str, Any]) -> str:
    for key in ("body", "plain_body"):
        if isinstance(text := comment.get(key), str) and text.strip():
            return text.replace("\r\n", "\n").replace("&nbsp;", " ").replace("\u00a0", " ")
    return text_of_html(comment.get("html_body"))


def _id_of(person: Any) -> str:
    return str(person.get("id") or "") if isinstance(person, dict) else ""
