"""The audit log: entries are added, and never changed or removed.

Each entry's hash covers that of the one before it (Haber & Stornetta, 1991, "How to time-stamp a digital document",
doi:10.1007/BF00196791), so that a change anywhere shows in all that follows. Triggers of the database refuse updates
and deletions besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import ColumnElement, Connection, select

from luthier.core.errors import LuthierError
from luthier.platform.audit_log.records import GENESIS_HASH, AuditEntry, AuditEvent
from luthier.platform.db.store import RecordTable, Store
from luthier.platform.db.tables import audit_log

_ENTRIES: Final = RecordTable(audit_log, AuditEntry)


class AuditLogStore(Store):
    """The log of one database."""

    def append(self, audit_event: AuditEvent) -> AuditEntry:
        """Add an entry."""
        with self._write() as connection:
            return append_audit_event(connection, self._database.now, audit_event)

    def after(self, number: int, *, limit: int) -> list[AuditEntry]:
        """At most `limit` entries behind this number, oldest first."""
        return self._list(_ENTRIES, audit_log.c.number > number, order=[audit_log.c.number], limit=limit)

    def newest(
        self,
        *,
        limit: int,
        project_id: str | None = None,
        before: int | None = None,
        actor: str = "",
        action: str = "",
    ) -> list[AuditEntry]:
        """The newest entries, newest first.

        Args:
            limit: The most entries.
            project_id: Only entries of this project.
            before: Only entries with a smaller number.
            actor: A part of the actor, regardless of capitals; empty for any.
            action: The whole action; empty for any.
        """
        where = [] if before is None else [audit_log.c.number < before]
        if actor:
            where.append(audit_log.c.actor.icontains(actor, autoescape=True))
        return self._list(_ENTRIES, *where, project_id=project_id, action=action or None, limit=limit)

    def actions(self, project_id: str) -> list[str]:
        """What was done in a project, each action once, in the order of the alphabet."""
        return sorted(self._scalars(select(audit_log.c.action).where(audit_log.c.project_id == project_id).distinct()))

    def about(self, project_id: str, subject: str, *, limit: int) -> list[AuditEntry]:
        """At most `limit` entries of a project about one thing, newest first."""
        return self._list(_ENTRIES, project_id=project_id, subject=subject, limit=limit)


class AuditedStore(Store):
    """A store whose changes are in the audit log: both take effect, or neither."""

    @contextmanager
    def _audited(self, *audit_events: AuditEvent | None, conflict: LuthierError | None = None) -> Iterator[Connection]:
        """As `_write`, with these entries at the end of the transaction."""
        with self._write(conflict) as connection:
            yield connection
            # At the end: an exception in the block leaves neither the change nor an entry.
            self._log(connection, *audit_events)

    def _log(self, connection: Connection, *audit_events: AuditEvent | None) -> None:
        for audit_event in audit_events:
            if audit_event is not None:
                append_audit_event(connection, self._database.now, audit_event)


def append_audit_event(connection: Connection, now: ColumnElement[float], audit_event: AuditEvent) -> AuditEntry:
    """Append an entry in an open write transaction, so that it is committed together with the change that it records.

    Write transactions are serialised, so no other entry can be appended between the last one and this.
    """
    newest_first = select(audit_log.c.number, audit_log.c.hash).order_by(audit_log.c.number.desc())
    last = connection.execute(newest_first.limit(1)).first()
    # Numbered here: a sequence of PostgreSQL leaves a gap after a rollback, and here a gap means a removed entry.
    number, previous_hash = (0, GENESIS_HASH) if last is None else (last.number, last.hash)
    entry = AuditEntry(
        number=number + 1,
        # To the millisecond: what is hashed must come back from the database as it went in.
        created_at=round(float(connection.execute(select(now)).scalar_one()), 3),
        previous_hash=previous_hash,
        **audit_event.model_dump(),
    )
    return _ENTRIES.insert(connection, entry.model_copy(update={"hash": entry.hash_of_it()}))
