"""Use cases: conversations of OpenAI's API, which keep the items that later responses are written after.

Where a stored response names those before it, a conversation holds the items themselves: those that a client adds, and
input and output of each response that is created in it. One response at a time is written in a conversation, since two
would answer the same items and be appended in each other's middle: a request locks it until it has ended. What nothing
was added to for `stored_completion_days` is deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.access import Caller
from luthier.features.traffic.conversation_store import Conversation, check_size
from luthier.features.traffic.policy import user_digest, user_key
from luthier.features.traffic.stored_texts import check_stores, lifetime_seconds
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context


def create_conversation(
    context: Context,
    caller: Caller,
    conversation_id: str,
    items: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
) -> Conversation:
    """A new conversation.

    Args:
        context: The home.
        caller: Whose project it belongs to.
        conversation_id: Its id.
        items: Its first items, each with an `id`.
        labels: Its metadata.

    Raises:
        UnsupportedError: The server or the project stores no texts.
    """
    _check_stores(context, caller)
    check_size(len(items), sum(len(json.dumps(item)) for item in items))
    one = Conversation(conversation_id=conversation_id, project_id=caller.project_id, labels=dict(labels))
    return context.conversations.add(one, items)


def conversation(context: Context, caller: Caller, conversation_id: str) -> Conversation:
    """One conversation.

    Raises:
        ConversationMissingError: The project has no such conversation, or it has expired.
    """
    return context.conversations.get(caller.project_id, conversation_id, newest_seconds=lifetime_seconds(context))


def update_conversation(
    context: Context, caller: Caller, conversation_id: str, labels: Mapping[str, str]
) -> Conversation:
    """Replace the metadata of a conversation; arguments and errors as of `ConversationStore.set_labels`."""
    newest_seconds = lifetime_seconds(context)
    return context.conversations.set_labels(caller.project_id, conversation_id, labels, newest_seconds=newest_seconds)


def delete_conversation(context: Context, caller: Caller, conversation_id: str) -> None:
    """Delete a conversation with its items; stored responses stay.

    Raises:
        ConversationMissingError: The project has no such conversation.
    """
    with context.database.transaction():
        context.conversations.remove(caller.project_id, conversation_id)
        record(context, caller, "conversation.deleted", conversation_id)


def items_before(context: Context, caller: Caller, conversation_id: str) -> list[dict[str, Any]]:
    """All items of a conversation, for a response in it.

    Raises:
        ConversationMissingError: The project has no such conversation, or it has expired.
        UnsupportedError: It is too large.
    """
    if context.only is not None:
        _check_stores(context, caller)
    conversation(context, caller, conversation_id)
    # Counted in the database: a conversation that is too large is refused before it is in memory.
    check_size(*context.conversations.size(conversation_id))
    return [one.document for one in context.conversations.items(conversation_id)]


def add_items(context: Context, caller: Caller, conversation_id: str, items: Sequence[Mapping[str, Any]]) -> None:
    """Add items to a conversation; errors as of `ConversationStore.append`, and where no texts are stored."""
    _check_stores(context, caller)
    newest_seconds = lifetime_seconds(context)
    context.conversations.append(caller.project_id, conversation_id, items, newest_seconds=newest_seconds)


def remove_item(context: Context, caller: Caller, conversation_id: str, item_id: str) -> Conversation:
    """Delete an item of a conversation; errors as of `ConversationStore.remove_item`."""
    with context.database.transaction():
        found = context.conversations.remove_item(
            caller.project_id, conversation_id, item_id, newest_seconds=lifetime_seconds(context)
        )
        record(context, caller, "conversation.item_deleted", conversation_id, {"item_id": item_id})
    return found


def lock_conversation(context: Context, caller: Caller, conversation_id: str, holder: str) -> None:
    """Begin a response in a conversation; errors as of `ConversationStore.lock`, and where no texts are stored."""
    _check_stores(context, caller)
    newest_seconds = lifetime_seconds(context)
    context.conversations.lock(caller.project_id, conversation_id, holder, newest_seconds=newest_seconds)


def append_response(
    context: Context,
    caller: Caller,
    conversation_id: str,
    items: Sequence[Mapping[str, Any]],
    *,
    holder: str,
    user: str,
) -> None:
    """End a response in a conversation: add its input and output.

    Args:
        context: The home.
        caller: Whose project it is.
        conversation_id: The conversation, which `holder` has locked.
        items: Those of the request, and of the answer.
        holder: The request.
        user: The end user; empty for none.

    Raises:
        ConversationMissingError: It was deleted meanwhile.
        ConversationLockedError: Another request has taken over.
    """
    digest = user_digest(user_key(context, caller.project_id), user) if user else ""
    context.conversations.append(
        caller.project_id,
        conversation_id,
        items,
        newest_seconds=lifetime_seconds(context),
        holder=holder,
        digest=digest,
    )


def sweep_conversations(context: Context) -> None:
    """Delete what nothing was added to for long enough."""
    context.conversations.sweep(lifetime_seconds(context))


def _check_stores(context: Context, caller: Caller) -> None:
    check_stores(context, caller, "send the items as input", came="a conversation", param="conversation")
