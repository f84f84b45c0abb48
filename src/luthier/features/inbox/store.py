"""Who does what of the inbox, with the messages about it in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection

from luthier.features.inbox.records import InboxMark
from luthier.platform.db.monitor_state import WatchDocument, put
from luthier.platform.db.store import RecordTable, Store
from luthier.platform.db.tables import inbox_items
from luthier.platform.notifications.store import EventType, announce_event

_MARKS: Final = RecordTable(inbox_items, InboxMark, clock="updated_at")
Event = tuple[EventType, dict[str, Any]]


class InboxStore(Store):
    """What was decided about the entries of all projects."""

    def list(self, project_id: str) -> Sequence[InboxMark]:
        """All decisions of a project, in the order of their entries."""
        return self._list(_MARKS, order=[inbox_items.c.item_id], project_id=project_id)

    def save(
        self, mark: InboxMark, *, events: Sequence[Event] = (), documents: Sequence[WatchDocument] = ()
    ) -> InboxMark:
        """Keep a decision in place of the one before.

        Args:
            mark: The decision; its time is set here.
            events: For the webhooks of the project.
            documents: Mails about it.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            kept = mark.model_copy(update={"updated_at": now})
            _MARKS.put(connection, kept)
            _queue(connection, mark.project_id, events, documents, now)
        return kept

    def notify(self, project_id: str, *, events: Sequence[Event], documents: Sequence[WatchDocument]) -> None:
        """Queue messages, all or none.

        Args:
            project_id: The project.
            events: For the webhooks of the project.
            documents: Mails, and the notes that they were sent.
        """
        with self._write() as connection:
            _queue(connection, project_id, events, documents, self._database.clock(connection))


def _queue(
    connection: Connection, project_id: str, events: Sequence[Event], documents: Sequence[WatchDocument], now: float
) -> None:
    for event_type, data in events:
        announce_event(connection, project_id, event_type, data, now)
    for one in documents:
        put(connection, one.project_id, one.kind, one.name, one.document)
