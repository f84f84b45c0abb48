"""The tables of conversations and of their items, and the lock of a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from sqlalchemy import Connection, delete, func, select, update

from luthier.core.errors import ConflictError, NotFoundError, UnsupportedError
from luthier.core.frozen_model import FrozenModel
from luthier.platform.db.store import Codec, Missing, RecordTable, Store, not_in_list
from luthier.platform.db.tables import conversation_items, conversations

MAX_ITEMS: Final = 2048
"""Of one conversation, as of the input of a response."""
MAX_CHARACTERS: Final = 16 << 20
"""Of the JSON of all items: a conversation is read whole for each response in it."""
LOCK_SECONDS: Final = 900.0
"""How long a request that never ended, as where a server was killed, keeps others out."""
_JSON: Final = Codec(json.dumps, json.loads)


class ConversationMissingError(NotFoundError):
    """The project has no such conversation, or it has expired."""


class ItemMissingError(NotFoundError):
    """The conversation has no such item."""


class ConversationLockedError(ConflictError):
    """Another request writes a response in this conversation."""


class Conversation(FrozenModel):
    """A conversation, without its items.

    Attributes:
        conversation_id: Its id, `conv_...`.
        project_id: The project that it belongs to.
        labels: Its metadata.
        locked_by: The request that writes a response in it; empty for none.
        locked_until: When that request no longer keeps others out, in seconds since 1970.
        created_at: Seconds since 1970 by the database's clock.
        updated_at: When an item was last added or removed, in the same seconds.
    """

    conversation_id: str
    project_id: str
    labels: dict[str, str]
    locked_by: str = ""
    locked_until: float = 0.0
    created_at: float = 0.0
    updated_at: float = 0.0


class ConversationItem(FrozenModel):
    """An item of a conversation.

    Attributes:
        conversation_id: The conversation.
        item_id: Its id, which is unique within the conversation.
        user_digest: The end user of the response that has added it, as in the traffic log; empty for none.
        document: As the API has it.
        created_at: Seconds since 1970 by the database's clock.
    """

    conversation_id: str
    item_id: str
    user_digest: str
    document: dict[str, Any]
    created_at: float = 0.0


_CONVERSATIONS: Final = RecordTable(
    conversations,
    Conversation,
    key="conversation_id",
    clock="created_at",
    codecs={"labels": _JSON},
    missing=Missing(
        "no conversation {key!r}",
        "the id of a conversation of this project that was not deleted, and has not expired",
        "create one: POST /v1/conversations",
    ),
)
_ITEMS: Final = RecordTable(
    conversation_items, ConversationItem, key="item_id", clock="created_at", codecs={"document": _JSON}
)


class ConversationStore(Store):
    """The conversations of all projects. Every method is one short transaction."""

    def add(self, one: Conversation, items: Sequence[Mapping[str, Any]]) -> Conversation:
        """Keep a new one with its first items, each with an `id`."""
        with self._write() as connection:
            now = self._database.clock(connection)
            made = _CONVERSATIONS.insert(connection, one.model_copy(update={"updated_at": now}), now)
            _insert_items(connection, one.conversation_id, items, "", now)
            return made

    def get(self, project_id: str, conversation_id: str, *, newest_seconds: float) -> Conversation:
        """One of them.

        Args:
            project_id: The project.
            conversation_id: The conversation.
            newest_seconds: How long ago it may have been changed.

        Raises:
            ConversationMissingError: The project has no such conversation, or it is older.
        """
        with self._database.read() as connection:
            return self._found(connection, project_id, conversation_id, newest_seconds)

    def set_labels(
        self, project_id: str, conversation_id: str, labels: Mapping[str, str], *, newest_seconds: float
    ) -> Conversation:
        """Replace its metadata.

        Raises:
            ConversationMissingError: The project has no such conversation, or it has expired.
        """
        with self._write() as connection:
            found = self._found(connection, project_id, conversation_id, newest_seconds)
            _CONVERSATIONS.change(connection, conversation_id, {"labels": _JSON.dump(dict(labels))})
            return found.model_copy(update={"labels": dict(labels)})

    def remove(self, project_id: str, conversation_id: str) -> None:
        """Delete one with its items.

        Raises:
            ConversationMissingError: The project has no such conversation.
        """
        with self._write() as connection:
            try:
                _CONVERSATIONS.remove(connection, conversation_id, project_id=project_id)
            except NotFoundError as error:
                raise _missing(error) from error

    def lock(self, project_id: str, conversation_id: str, holder: str, *, newest_seconds: float) -> None:
        """Keep other requests from writing in it, until `append`, `unlock` or `LOCK_SECONDS` have passed.

        Args:
            project_id: The project.
            conversation_id: The conversation.
            holder: The request.
            newest_seconds: As of `get`.

        Raises:
            ConversationMissingError: The project has no such conversation, or it has expired.
            ConversationLockedError: Another request has locked it.
        """
        with self._write() as connection:
            self._writable(connection, project_id, conversation_id, newest_seconds)
            values = {"locked_by": holder, "locked_until": self._database.clock(connection) + LOCK_SECONDS}
            _CONVERSATIONS.change(connection, conversation_id, values)

    def unlock(self, conversation_id: str, holder: str) -> None:
        """Let other requests write in it, where this one still keeps them out."""
        columns = conversations.c
        is_it = (columns.conversation_id == conversation_id) & (columns.locked_by == holder)
        with self._write() as connection:
            connection.execute(update(conversations).where(is_it).values(locked_by="", locked_until=0.0))

    def append(
        self,
        project_id: str,
        conversation_id: str,
        items: Sequence[Mapping[str, Any]],
        *,
        newest_seconds: float,
        holder: str = "",
        digest: str = "",
    ) -> None:
        """Add items behind all others, and unlock it.

        Args:
            project_id: The project.
            conversation_id: The conversation.
            items: Each with an `id`.
            newest_seconds: As of `get`.
            holder: The request that has locked it; empty for none.
            digest: The end user; empty for none.

        Raises:
            ConversationMissingError: The project has no such conversation, or it has expired.
            ConversationLockedError: Another request has locked it, also because this one took too long.
            UnsupportedError: It has an item of such an id already, or as many items as it may.
        """
        with self._write() as connection:
            found = self._writable(connection, project_id, conversation_id, newest_seconds, holder)
            if holder and found.locked_by != holder:
                raise _locked(conversation_id)
            if not holder:
                self._check_room(connection, conversation_id, items)
            now = self._database.clock(connection)
            _insert_items(connection, conversation_id, items, digest, now)
            _CONVERSATIONS.change(
                connection, conversation_id, {"updated_at": now, "locked_by": "", "locked_until": 0.0}
            )

    def remove_item(
        self, project_id: str, conversation_id: str, item_id: str, *, newest_seconds: float
    ) -> Conversation:
        """Delete an item.

        Raises:
            ConversationMissingError: The project has no such conversation, or it has expired.
            ConversationLockedError: A request is writing in the conversation.
            ItemMissingError: It has no such item.
        """
        with self._write() as connection:
            found = self._writable(connection, project_id, conversation_id, newest_seconds)
            if connection.execute(delete(conversation_items).where(_is_item(conversation_id, item_id))).rowcount == 0:
                raise _no_item(conversation_id, item_id)
            now = self._database.clock(connection)
            _CONVERSATIONS.change(connection, conversation_id, {"updated_at": now})
            return found.model_copy(update={"updated_at": now})

    def item(self, conversation_id: str, item_id: str) -> ConversationItem:
        """One item.

        Raises:
            ItemMissingError: The conversation has no such item.
        """
        found = self._find(_ITEMS, _is_item(conversation_id, item_id))
        if found is None:
            raise _no_item(conversation_id, item_id)
        return found

    def item_ids(self, conversation_id: str, item_ids: Sequence[str]) -> set[str]:
        """Which of these ids items of the conversation have."""
        columns = conversation_items.c
        is_one = (columns.conversation_id == conversation_id) & columns.item_id.in_(item_ids)
        return set(self._scalars(select(columns.item_id).where(is_one)))

    def items(
        self,
        conversation_id: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        order: Literal["asc", "desc"] = "asc",
    ) -> list[ConversationItem]:
        """Items of a conversation.

        Args:
            conversation_id: The conversation.
            after: The id of the item behind which they begin; None for the first.
            limit: The most of them; None for all.
            order: The first or the last one first.

        Raises:
            UnsupportedError: The conversation has no item of the id `after`.
        """
        columns = conversation_items.c
        where = [columns.conversation_id == conversation_id]
        if after is not None:
            beyond = self._scalar(select(columns.number).where(_is_item(conversation_id, after)))
            if beyond is None:
                raise not_in_list(after, "the id of an item of the conversation")
            where.append(columns.number > beyond if order == "asc" else columns.number < beyond)
        ordered = [columns.number.asc() if order == "asc" else columns.number.desc()]
        return self._list(_ITEMS, *where, order=ordered, limit=limit)

    def size(self, conversation_id: str) -> tuple[int, int]:
        """Items of a conversation, and the characters of their JSON."""
        with self._database.read() as connection:
            return _size(connection, conversation_id)

    def forget(self, project_id: str, digest: str) -> int:
        """Delete all conversations with items of an end user, and return how many there were.

        Whole ones: answers repeat what was asked, and items that a client has added name no user.
        """
        items = conversation_items.c
        theirs = select(items.conversation_id).where(items.user_digest == digest)
        is_theirs = (conversations.c.project_id == project_id) & conversations.c.conversation_id.in_(theirs)
        with self._write() as connection:
            return connection.execute(delete(conversations).where(is_theirs)).rowcount

    def sweep(self, older_than_seconds: float) -> None:
        """Delete all that were last changed longer ago than so many seconds."""
        with self._write() as connection:
            oldest = self._database.clock(connection) - older_than_seconds
            connection.execute(delete(conversations).where(conversations.c.updated_at < oldest))

    def _found(
        self,
        connection: Connection,
        project_id: str,
        conversation_id: str,
        newest_seconds: float,
        *,
        is_locked: bool = False,
    ) -> Conversation:
        is_young = conversations.c.updated_at >= self._database.clock(connection) - newest_seconds
        is_it = conversations.c.conversation_id == conversation_id
        found = _CONVERSATIONS.first(connection, is_it, is_young, is_locked=is_locked, project_id=project_id)
        if found is None:
            raise _missing(_CONVERSATIONS.not_found(connection, conversation_id))
        return found

    def _writable(
        self, connection: Connection, project_id: str, conversation_id: str, newest_seconds: float, holder: str = ""
    ) -> Conversation:
        """The conversation, whose row no other transaction changes until this one ends."""
        found = self._found(connection, project_id, conversation_id, newest_seconds, is_locked=True)
        if found.locked_by not in ("", holder) and found.locked_until > self._database.clock(connection):
            raise _locked(conversation_id)
        return found

    def _check_room(self, connection: Connection, conversation_id: str, items: Sequence[Mapping[str, Any]]) -> None:
        num_items, num_characters = _size(connection, conversation_id)
        num_characters += sum(len(_JSON.dump(item)) for item in items)
        check_size(num_items + len(items), num_characters)
        columns = conversation_items.c
        ids = [item["id"] for item in items]
        is_one = (columns.conversation_id == conversation_id) & columns.item_id.in_(ids)
        if (taken := connection.execute(select(columns.item_id).where(is_one).limit(1)).scalar()) is not None:
            raise duplicate(taken)


def check_size(num_items: int, num_characters: int) -> None:
    """Raise UnsupportedError for a conversation that is too large to be read for a response."""
    if num_items > MAX_ITEMS or num_characters > MAX_CHARACTERS:
        raise UnsupportedError(
            f"a conversation of {num_items:,} items with {num_characters:,} characters of JSON",
            expected=f"at most {MAX_ITEMS:,} items with {MAX_CHARACTERS:,} characters",
            do="create a conversation with the newest items: POST /v1/conversations",
            code="conversation_too_large",
            param="conversation",
        )


def duplicate(item_id: str) -> UnsupportedError:
    """The refusal of an item whose id the conversation has already."""
    return UnsupportedError(
        f"Duplicate item found with id {item_id!r}: the conversation has it already",
        expected="new items alone",
        do="leave it out: the items of the conversation come before those of the request",
        code="invalid_value",
        param="input",
    )


def _insert_items(
    connection: Connection, conversation_id: str, items: Sequence[Mapping[str, Any]], digest: str, now: float
) -> None:
    for item in items:
        one = ConversationItem(
            conversation_id=conversation_id, item_id=item["id"], user_digest=digest, document=dict(item)
        )
        _ITEMS.insert(connection, one, now)


def _size(connection: Connection, conversation_id: str) -> tuple[int, int]:
    columns = conversation_items.c
    counts = select(func.count(), func.coalesce(func.sum(func.length(columns.document)), 0))
    num_items, num_characters = connection.execute(counts.where(columns.conversation_id == conversation_id)).one()
    return int(num_items), int(num_characters)


def _is_item(conversation_id: str, item_id: str) -> Any:
    return (conversation_items.c.conversation_id == conversation_id) & (conversation_items.c.item_id == item_id)


def _missing(error: NotFoundError) -> ConversationMissingError:
    return ConversationMissingError(error.came, expected=error.expected, do=error.do)


def _no_item(conversation_id: str, item_id: str) -> ItemMissingError:
    return ItemMissingError(
        f"no item {item_id[:100]!r} in the conversation {conversation_id!r}",
        expected="the id of an item of it",
        do="list them: GET /v1/conversations/ID/items",
    )


def _locked(conversation_id: str) -> ConversationLockedError:
    return ConversationLockedError(
        f"the conversation {conversation_id!r}, in which another request is writing a response",
        expected="one response at a time",
        do="send this one again when that one has ended, or use another conversation",
    )
