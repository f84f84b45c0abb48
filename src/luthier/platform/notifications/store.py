"""Webhooks and the messages to them: records and store.

A job that has ended is announced in the transaction that inserts the messages about it: after a crash at any moment
either nothing has happened or all of it has (the outbox of Richardson, Microservices Patterns, 2018, section 3.3).
Messages are taken by a lease, so that two servers do not both send one; one that was sent by a server that died
before it could record it is sent again, with the same id.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

from sqlalchemy import Connection, RowMapping, case, delete, insert, select, update

from luthier.core.frozen_model import FrozenModel
from luthier.core.import_string import import_string
from luthier.core.system.clock_jump import SLACK_SECONDS
from luthier.platform.db.store import WORDS, Missing, RecordTable, Store
from luthier.platform.db.tables import jobs, webhook_deliveries, webhooks
from luthier.platform.jobs.kinds import KINDS
from luthier.platform.jobs.records import ENDED, Job
from luthier.platform.jobs.rows import job_of

log = logging.getLogger("luthier.webhooks")

EventType = Literal[
    "fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled",
    "batch.completed", "batch.failed", "batch.expired", "batch.cancelled",
    "eval.run.succeeded", "eval.run.failed", "eval.run.canceled",
    "luthier.alert.opened", "luthier.alert.closed", "luthier.inbox.assigned", "luthier.inbox.due",
]  # fmt: skip
EVENT_TYPES: Final[tuple[EventType, ...]] = get_args(EventType)
TEST_EVENT: Final = "luthier.webhook.test"
DeliveryStatus = Literal["pending", "delivered", "failed"]


class Webhook(FrozenModel):
    """An address that gets messages about events, without the secret that they are signed with.

    Attributes:
        webhook_id: Its id.
        project_id: The project whose events it gets.
        url: Where messages go.
        event_types: The events that it gets.
        created_at: Seconds since 1970 by the database's clock.
        problem: Why no message can be sent to it until it is made again; None where all is well.
    """

    webhook_id: str
    project_id: str
    url: str
    event_types: tuple[EventType, ...]
    created_at: float = 0.0
    problem: str | None = None


class Delivery(FrozenModel):
    """One message to one webhook. Times are seconds since 1970 by the database's clock.

    Attributes:
        message_id: The same at each attempt; receivers recognise repetitions by it.
        webhook_id: The webhook.
        body: The JSON that is sent, byte for byte the same at each attempt, since it is signed.
        status: Whether it still waits, or how it ended.
        num_attempts: The attempts until now, and the fencing token of the current one.
        next_at: When it is tried next, or when the current sender counts as gone.
        last_answer: How the last attempt went; None before the first.
        created_at: When it was made.
    """

    message_id: str
    webhook_id: str
    body: str
    status: DeliveryStatus
    num_attempts: int
    next_at: float
    last_answer: str | None
    created_at: float


class DueDelivery(FrozenModel):
    """A delivery that one sender has taken.

    Attributes:
        delivery: The message.
        url: Where it goes.
        secret: What it is signed with, `whsec_...`.
        age_seconds: Seconds since it was made.
    """

    delivery: Delivery
    url: str
    secret: str
    age_seconds: float


_KEPT_SECONDS: Final = 30 * 24 * 3600.0
_MOST_AT_ONCE: Final = 500
_IS_UNANNOUNCED: Final = jobs.c.status.in_(ENDED) & (jobs.c.announced == 0)
_WEBHOOKS: Final = RecordTable(
    webhooks,
    Webhook,
    key="webhook_id",
    clock="created_at",
    codecs={"event_types": WORDS},
    missing=Missing("no webhook {key!r}", "the id of a webhook of this project", "list them: GET /api/v1/webhooks"),
)
_DELIVERIES: Final = RecordTable(webhook_deliveries, Delivery)


class WebhookStore(Store):
    """The webhooks of all projects.

    Methods that take a webhook id raise NotFoundError, also for another project's.
    """

    def add(self, webhook: Webhook, secret: str) -> Webhook:
        """Store a webhook; its time is set here, by the database's clock.

        Args:
            webhook: Without its secret.
            secret: That its messages are signed with.
        """
        with self._write() as connection:
            return _WEBHOOKS.insert(connection, webhook, self._database.clock(connection), secret=secret)

    def of_project(self, project_id: str) -> list[Webhook]:
        """The webhooks of a project, newest first."""
        return self._list(_WEBHOOKS, project_id=project_id)

    def get(self, webhook_id: str, project_id: str) -> Webhook:
        """One webhook."""
        return self._get(_WEBHOOKS, webhook_id, project_id=project_id)

    def signing_secrets(self, project_id: str) -> dict[str, str]:
        """What the messages of each webhook of a project are signed with, by its id."""
        columns = select(webhooks.c.webhook_id, webhooks.c.secret).where(webhooks.c.project_id == project_id)
        with self._database.read() as connection:
            return {row.webhook_id: row.secret for row in connection.execute(columns)}

    def remove(self, webhook_id: str, project_id: str) -> Webhook:
        """Remove a webhook with its undelivered messages."""
        with self._write() as connection:
            found = _WEBHOOKS.get(connection, webhook_id, project_id=project_id)
            _WEBHOOKS.remove(connection, webhook_id)
            return found

    def drop(self, webhook_id: str) -> None:
        """Delete a webhook whose receiver wants no more; a missing one changes nothing."""
        with self._write() as connection:
            connection.execute(delete(webhooks).where(webhooks.c.webhook_id == webhook_id))

    def deliveries(self, webhook_id: str, project_id: str, limit: int) -> list[Delivery]:
        """Messages to a webhook, newest first; those that have ended are kept for 30 days.

        Args:
            webhook_id: The webhook.
            project_id: Its project.
            limit: The most messages.

        Raises:
            NotFoundError: The project has no such webhook.
        """
        with self._database.snapshot():
            self._get(_WEBHOOKS, webhook_id, project_id=project_id)
            return self._list(_DELIVERIES, webhook_id=webhook_id, limit=limit)

    def tell(self, webhook_id: str, project_id: str, event_type: str, data: dict[str, Any]) -> Delivery:
        """Store one message, due immediately.

        Args:
            webhook_id: The webhook that gets it.
            project_id: The project of the webhook.
            event_type: Such as `fine_tuning.job.succeeded`.
            data: The `data` of the event, as JSON values.

        Raises:
            NotFoundError: The project has no such webhook.
        """
        with self._write() as connection:
            _WEBHOOKS.get(connection, webhook_id, project_id=project_id)
            now = self._database.clock(connection)
            values = _message(webhook_id, _event(event_type, data, now), now)
            connection.execute(insert(webhook_deliveries).values(**values))
            return Delivery.model_validate(values)

    def announce(self) -> int:
        """Insert the messages about jobs that have ended since; returns the number of these jobs.

        A job that was resumed after its end ends a second time, and is announced a second time.
        """
        with self._database.read() as connection:
            to_do = select(jobs.c.number).where(_IS_UNANNOUNCED).limit(1)
            # Looked at every second: a read does not take the turn of a writer.
            if connection.execute(to_do).first() is None:
                return 0
        with self._write() as connection:
            now = self._database.clock(connection)
            ended = select(jobs).where(_IS_UNANNOUNCED).order_by(jobs.c.number).limit(_MOST_AT_ONCE)
            # Announced here and nowhere else, in the transaction that inserts the messages: each end exactly once.
            rows = connection.execute(ended.with_for_update(skip_locked=True)).mappings().all()
            hooks = connection.execute(
                select(webhooks).where(webhooks.c.project_id.in_({row["project_id"] for row in rows}))
            ).mappings()
            messages = _messages(connection, rows, hooks.all(), now)
            if messages:
                connection.execute(insert(webhook_deliveries), messages)
            numbers = [row["number"] for row in rows]
            connection.execute(update(jobs).where(jobs.c.number.in_(numbers)).values(announced=1))
            is_old = webhook_deliveries.c.created_at < now - _KEPT_SECONDS
            connection.execute(delete(webhook_deliveries).where(is_old, webhook_deliveries.c.status != "pending"))
            return len(rows)

    def claim(self, *, limit: int, lease_seconds: float) -> list[DueDelivery]:
        """Take messages that are due, longest overdue first; no other process takes them until the lease ends.

        Args:
            limit: The most messages.
            lease_seconds: How long they are held.
        """
        table = webhook_deliveries
        # What was written in the future was written before the clock was set back.
        is_from_the_future = table.c.created_at > self._database.now + SLACK_SECONDS
        is_due = (table.c.status == "pending") & ((table.c.next_at <= self._database.now) | is_from_the_future)
        joined = table.join(webhooks, table.c.webhook_id == webhooks.c.webhook_id)
        due = (
            select(table, webhooks.c.url, webhooks.c.secret).select_from(joined).where(is_due).order_by(table.c.next_at)
        )
        with self._database.read() as connection:
            # As above: mostly nothing is due.
            if connection.execute(due.limit(1)).first() is None:
                return []
        with self._write() as connection:
            now = self._database.clock(connection)
            query = due.limit(limit).with_for_update(of=table, skip_locked=True)
            rows = connection.execute(query).mappings().all()
            numbers = [row["number"] for row in rows]
            created_at = case((table.c.created_at > now, now), else_=table.c.created_at)
            values = {
                # next_at is the lease: a sender that dies leaves the message due again afterwards.
                "next_at": now + lease_seconds, "num_attempts": table.c.num_attempts + 1, "created_at": created_at,
            }  # fmt: skip
            connection.execute(update(table).where(table.c.number.in_(numbers)).values(**values))
            return [_due(row, now, lease_seconds) for row in rows]

    def settle(
        self, taken: Delivery, status: DeliveryStatus, answer: str, *, wait_seconds: float = 0.0
    ) -> Delivery | None:
        """Store how an attempt went.

        Args:
            taken: The delivery as claimed.
            status: `pending` if it is to be tried again.
            answer: How it went, for people.
            wait_seconds: Until the next attempt, where the status is still `pending`.

        Returns:
            The updated delivery; None where the lease had ended and another sender has taken it.
        """
        table = webhook_deliveries
        # The number of attempts is the fencing token: a later sender of the message has a higher one.
        is_ours = (table.c.message_id == taken.message_id) & (table.c.num_attempts == taken.num_attempts)
        with self._write() as connection:
            values = {
                "status": status,
                "last_answer": answer,
                "next_at": self._database.clock(connection) + wait_seconds,
            }
            pending = table.c.status == "pending"
            if connection.execute(update(table).where(is_ours, pending).values(**values)).rowcount == 0:
                return None
            return _DELIVERIES.first(connection, is_ours)


def announce_event(
    connection: Connection, project_id: str, event_type: EventType, data: dict[str, Any], now: float
) -> int:
    """Insert the messages about an event, in the transaction of the event itself.

    Args:
        connection: That transaction.
        project_id: The project whose webhooks get the event.
        event_type: The kind of event.
        data: What the event is about.
        now: Seconds since 1970 by the database's clock.

    Returns:
        The number of webhooks that get it.
    """
    of_project = select(webhooks).where(webhooks.c.project_id == project_id)
    hooks = [hook for hook in connection.execute(of_project).mappings() if event_type in hook["event_types"].split()]
    event = _event(event_type, data, now)
    if hooks:
        connection.execute(insert(webhook_deliveries), [_message(hook["webhook_id"], event, now) for hook in hooks])
    return len(hooks)


def training_event(_connection: Connection, job: Job) -> tuple[str, str]:
    """The event about the end of a training, however it was ordered; `ended_event` of its kind of job."""
    return f"fine_tuning.job.{job.status}", job.job_id


def _messages(
    connection: Connection, rows: Sequence[RowMapping], hooks: Sequence[RowMapping], now: float
) -> list[dict[str, Any]]:
    """The rows to insert: for each job whose end is an event, one message for each webhook that wants it."""
    made = []
    for row in rows:
        of_project = [hook for hook in hooks if hook["project_id"] == row["project_id"]]
        found = _ended_event(connection, row) if of_project else None
        if found is None:
            continue
        event_type, subject_id = found
        event = _event(event_type, {"id": subject_id}, row["finished_at"] or now)
        for hook in of_project:
            if event_type in hook["event_types"].split():
                made.append(_message(hook["webhook_id"], event, now))
    return made


def _ended_event(connection: Connection, row: RowMapping) -> tuple[str, str] | None:
    try:
        rules = KINDS[row["kind"]]
        return import_string(rules.ended_event)(connection, job_of(row)) if rules.ended_event else None
    except (AttributeError, LookupError, TypeError, ValueError):
        # A row that cannot be read, such as one of a newer version: the ends of all other jobs are announced still.
        # Errors of the database pass: after them this transaction cannot go on.
        log.exception("the end of job %s cannot be announced to webhooks", row["job_id"])
        return None


def _event(event_type: str, data: dict[str, Any], at: float) -> str:
    event = {
        "id": f"evt_{secrets.token_hex(12)}",
        "object": "event",
        "created_at": int(at),
        "type": event_type,
        "data": data,
    }
    return json.dumps(event, separators=(",", ":"))


def _message(webhook_id: str, body: str, now: float) -> dict[str, Any]:
    return {
        "message_id": f"msg_{secrets.token_hex(12)}", "webhook_id": webhook_id, "body": body, "status": "pending",
        "num_attempts": 0, "next_at": now, "last_answer": None, "created_at": now,
    }  # fmt: skip


def _due(row: RowMapping, now: float, lease_seconds: float) -> DueDelivery:
    changed = {"num_attempts": row["num_attempts"] + 1, "next_at": now + lease_seconds}
    taken = _DELIVERIES.of_row(row).model_copy(update=changed)
    return DueDelivery(delivery=taken, url=row["url"], secret=row["secret"], age_seconds=now - row["created_at"])
