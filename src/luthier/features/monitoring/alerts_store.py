"""Alerts, written in one transaction with the messages about them (an outbox, as in `store.webhooks`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update

from luthier.core.errors import NotFoundError
from luthier.core.records.alert import Alert, AlertStatus
from luthier.core.text.suggest import suggest_ids
from luthier.platform.db.database import Database
from luthier.platform.db.monitor_state import WatchDocument, put
from luthier.platform.db.tables import alerts
from luthier.platform.notifications.records import EventType
from luthier.platform.notifications.store import announce_event

Event = tuple[EventType, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Settled:
    """What a look at a model has changed. alerts: new and changed ones. documents: kept with them. events: for webhooks
    of the project."""

    alerts: Sequence[Alert]
    documents: Sequence[WatchDocument]
    events: Sequence[Event] = ()


class AlertStore:
    """The alerts of all projects. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def settle(self, project_id: str, settled: Settled) -> None:
        """Write down all that a look has changed, or, where that fails, nothing of it."""
        with self._database.write() as connection:
            for alert in settled.alerts:
                values = {"status": alert.status, "document": alert.model_dump_json()}
                is_it = alerts.c.alert_id == alert.alert_id
                if connection.execute(update(alerts).where(is_it).values(**values)).rowcount == 0:
                    place = alert.model_dump(include={"alert_id", "project_id", "model", "opened_at"})
                    connection.execute(insert(alerts).values(**values, **place, signal=alert.signal.name[:128]))
            for one in settled.documents:
                put(connection, one.project_id, one.kind, one.name, one.document)
            now = self._database.clock(connection)
            for event_type, data in settled.events:
                announce_event(connection, project_id, event_type, data, now)

    def list(
        self, project_id: str, *, model: str | None = None, status: AlertStatus | None = None, limit: int | None = None
    ) -> Sequence[Alert]:
        """Alerts of a project, newest first."""
        query = select(alerts.c.document).where(alerts.c.project_id == project_id).order_by(alerts.c.number.desc())
        if model is not None:
            query = query.where(alerts.c.model == model)
        if status is not None:
            query = query.where(alerts.c.status == status)
        with self._database.read() as connection:
            found = connection.execute(query.limit(limit)).scalars()
            return [Alert.model_validate_json(document) for document in found]

    def get(self, alert_id: str, project_id: str) -> Alert:
        """An alert. Raises NotFoundError, naming the nearest ids; also for another project's."""
        is_it = (alerts.c.alert_id == alert_id) & (alerts.c.project_id == project_id)
        known = select(alerts.c.alert_id).where(alerts.c.project_id == project_id).order_by(alerts.c.number.desc())
        with self._database.read() as connection:
            document = connection.execute(select(alerts.c.document).where(is_it)).scalar()
            if document is not None:
                return Alert.model_validate_json(document)
            ids = connection.execute(known.limit(1000)).scalars().all()
        raise NotFoundError(
            f"no alert {alert_id!r}; {suggest_ids(alert_id, ids)}",
            expected="the id of an alert of this project",
            do="see `luthier alerts list`",
        )
