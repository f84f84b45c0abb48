"""The audit log: entries are added, and never changed or removed.

Each entry's hash covers that of the one before it (Haber & Stornetta, 1991, "How to time-stamp a digital document",
doi:10.1007/BF00196791), so that a change anywhere shows in all that follows. Triggers of the database refuse updates
and deletions besides.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, insert, select

from luthier.platform.audit_log.records import GENESIS_HASH, AuditEntry, AuditEvent
from luthier.platform.db.database import Database
from luthier.platform.db.tables import audit_log


class AuditLogStore:
    """The log of one database. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, audit_event: AuditEvent) -> AuditEntry:
        """Add an entry."""
        with self._database.write() as connection:
            return append_audit_event(connection, self._database.now, audit_event)

    def after(self, number: int, *, limit: int) -> list[AuditEntry]:
        """At most `limit` entries behind this number, oldest first."""
        query = select(audit_log).where(audit_log.c.number > number).order_by(audit_log.c.number).limit(limit)
        with self._database.read() as connection:
            return [AuditEntry(**row) for row in connection.execute(query).mappings()]

    def newest(
        self,
        *,
        limit: int,
        project_id: str | None = None,
        before: int | None = None,
        actor: str = "",
        action: str = "",
    ) -> list[AuditEntry]:
        """At most `limit` entries, newest first; of one project where it is named.

        before: only those with a smaller number. actor: part of who did it, capitals or not. action: as it stands.
        """
        query = select(audit_log).order_by(audit_log.c.number.desc()).limit(limit)
        if project_id is not None:
            query = query.where(audit_log.c.project_id == project_id)
        if before is not None:
            query = query.where(audit_log.c.number < before)
        if actor:
            query = query.where(audit_log.c.actor.icontains(actor, autoescape=True))
        if action:
            query = query.where(audit_log.c.action == action)
        with self._database.read() as connection:
            return [AuditEntry(**row) for row in connection.execute(query).mappings()]

    def actions(self, project_id: str) -> list[str]:
        """What was done in a project, each action once, in the order of the alphabet."""
        query = select(audit_log.c.action).where(audit_log.c.project_id == project_id).distinct()
        with self._database.read() as connection:
            return sorted(connection.execute(query).scalars())

    def about(self, project_id: str, subject: str, *, limit: int) -> list[AuditEntry]:
        """At most `limit` entries of a project about one thing, newest first."""
        is_it = (audit_log.c.project_id == project_id) & (audit_log.c.subject == subject)
        query = select(audit_log).where(is_it).order_by(audit_log.c.number.desc()).limit(limit)
        with self._database.read() as connection:
            return [AuditEntry(**row) for row in connection.execute(query).mappings()]


def append_audit_event(connection: Connection, now: ColumnElement[float], audit_event: AuditEvent) -> AuditEntry:
    """Append an entry in an open write transaction, so that it is committed together with the change that it records.

    Write transactions are serialised, so no other entry can be appended between the last one and this.
    """
    last = connection.execute(
        select(audit_log.c.number, audit_log.c.hash).order_by(audit_log.c.number.desc()).limit(1)
    ).first()
    number, previous_hash = (0, GENESIS_HASH) if last is None else (last.number, last.hash)
    entry = AuditEntry(
        number=number + 1,
        # To the millisecond: what is hashed must come back from the database as it went in.
        created_at=round(float(connection.execute(select(now)).scalar_one()), 3),
        previous_hash=previous_hash,
        **audit_event.model_dump(),
    )
    sealed = entry.model_copy(update={"hash": entry.hash_of_it()})
    connection.execute(insert(audit_log).values(**sealed.model_dump()))
    return sealed
