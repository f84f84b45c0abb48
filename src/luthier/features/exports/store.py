"""Exports that the server was asked for: each with the job that makes it, and what was made."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import RowMapping, delete, insert, select, update

from luthier.core.errors import NotFoundError
from luthier.core.records.export import Export, ServerExport
from luthier.platform.audit_log.records import AuditEvent
from luthier.platform.audit_log.store import append_audit_event
from luthier.platform.db.database import Database
from luthier.platform.db.tables import exports
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.rows import add_job


class ExportStore:
    """The exports of all projects. Every method is one short transaction, which writes the audit events too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, export: ServerExport, job: Job, audit_event: AuditEvent) -> ServerExport:
        """Keep an export that is to be made, and queue its job: both or neither."""
        with self._database.write() as connection:
            now = self._database.clock(connection)
            add_job(connection, now, job)
            values = export.model_dump(exclude={"document"}) | {"document": None, "created_at": now}
            connection.execute(insert(exports).values(**values))
            append_audit_event(connection, self._database.now, audit_event)
        return export.model_copy(update={"created_at": now})

    def finish(self, export_id: str, made: Export) -> None:
        """Keep what was made. Raises NotFoundError."""
        values = {"document": made.model_dump_json()}
        with self._database.write() as connection:
            is_it = exports.c.export_id == export_id
            if connection.execute(update(exports).where(is_it).values(**values)).rowcount == 0:
                raise _no_such_export(export_id)

    def get(self, project_id: str, export_id: str) -> ServerExport:
        """One export. Raises NotFoundError, also for another project's."""
        is_it = (exports.c.project_id == project_id) & (exports.c.export_id == export_id)
        with self._database.read() as connection:
            row = connection.execute(select(exports).where(is_it)).mappings().first()
        if row is None:
            raise _no_such_export(export_id)
        return _export(row)

    def list(self, project_id: str, *, sources: Sequence[str] | None = None) -> list[ServerExport]:
        """The project's exports, newest first; those of some sources where they are named."""
        query = select(exports).where(exports.c.project_id == project_id)
        if sources is not None:
            query = query.where(exports.c.source.in_(sources))
        with self._database.read() as connection:
            return [_export(row) for row in connection.execute(query.order_by(exports.c.number.desc())).mappings()]

    def remove(self, project_id: str, export_id: str, audit_event: AuditEvent) -> None:
        """Forget an export; files stay. Raises NotFoundError."""
        is_it = (exports.c.project_id == project_id) & (exports.c.export_id == export_id)
        with self._database.write() as connection:
            if connection.execute(delete(exports).where(is_it)).rowcount == 0:
                raise _no_such_export(export_id)
            append_audit_event(connection, self._database.now, audit_event)


def _export(row: RowMapping) -> ServerExport:
    values = {name: value for name, value in row.items() if name not in ("number", "document")}
    document = None if row["document"] is None else Export.model_validate_json(row["document"])
    return ServerExport(**values, document=document)


def _no_such_export(export_id: str) -> NotFoundError:
    return NotFoundError(
        f"no export {export_id[:64]!r}",
        expected="the id of an export of this project",
        do="see the exports on the page of the model",
    )
