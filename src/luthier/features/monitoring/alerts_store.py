"""Alerts, written in one transaction with the messages about them (an outbox, as in `store.webhooks`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import update

from luthier.core.records.monitoring import Alert, AlertStatus
from luthier.platform.db.monitor_state import WatchDocument, is_still, put
from luthier.platform.db.store import Codec, Missing, RecordTable, Store
from luthier.platform.db.tables import alerts
from luthier.platform.notifications.store import EventType, announce_event

Event = tuple[EventType, dict[str, Any]]
_MAX_SIGNAL_CHARACTERS: Final = 128
_ALERTS: Final = RecordTable(
    alerts,
    Alert,
    key="alert_id",
    codecs={"signal": Codec(lambda signal: signal.name[:_MAX_SIGNAL_CHARACTERS], str)},
    missing=Missing(
        "no alert {key!r}", "the id of an alert of this project", "see `luthier alerts list`", suggests=True
    ),
)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a check of a model has changed; written in one transaction.

    Attributes:
        alerts: New and changed alerts.
        states: The states of the model's signals after the check.
        states_before: The same document as the check read it; None where there was none.
        documents: Mails about the changes.
        events: Events for the webhooks of the project.
    """

    alerts: Sequence[Alert]
    states: WatchDocument
    states_before: str | None
    documents: Sequence[WatchDocument] = ()
    events: Sequence[Event] = ()


class AlertStore(Store):
    """The alerts of all projects."""

    def settle(self, project_id: str, settled: Settled) -> bool:
        """Write all that a check has changed, or, where that fails, nothing of it.

        Returns:
            Whether it was written. False: another check of the model was written after this one had read the states.
        """
        states = settled.states
        with self._write() as connection:
            # Compared in the transaction that writes: two concurrent checks would both open the same alert.
            if not is_still(connection, states.project_id, states.kind, states.name, settled.states_before):
                return False
            for alert in settled.alerts:
                values = {"status": alert.status, "document": alert.model_dump_json()}
                is_it = alerts.c.alert_id == alert.alert_id
                # Update first, insert if nothing was hit: an upsert with the same syntax in SQLite and PostgreSQL.
                if connection.execute(update(alerts).where(is_it).values(**values)).rowcount == 0:
                    _ALERTS.insert(connection, alert)
            for one in (states, *settled.documents):
                put(connection, one.project_id, one.kind, one.name, one.document)
            now = self._database.clock(connection)
            # Outbox: only rows are written here. Calling a webhook in the transaction would hold its lock for seconds.
            for event_type, data in settled.events:
                announce_event(connection, project_id, event_type, data, now)
        return True

    def list(
        self, project_id: str, *, model: str | None = None, status: AlertStatus | None = None, limit: int | None = None
    ) -> Sequence[Alert]:
        """Alerts of a project, newest first.

        Args:
            project_id: The project.
            model: Only alerts of this deployment; None for all.
            status: Only open or only closed ones; None for both.
            limit: The most alerts; None for all.
        """
        return self._list(_ALERTS, project_id=project_id, model=model, status=status, limit=limit)

    def get(self, alert_id: str, project_id: str) -> Alert:
        """An alert.

        Raises:
            NotFoundError: The project has no such alert; the message names the nearest ids.
        """
        return self._get(_ALERTS, alert_id, project_id=project_id)
