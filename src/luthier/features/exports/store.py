"""Exports requested from the server: each with its job and its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from luthier.core.records.export import Export, ServerExport
from luthier.platform.db.store import Missing, RecordTable, Store, json_of
from luthier.platform.db.tables import exports
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.rows import add_job

_EXPORTS: Final = RecordTable(
    exports,
    ServerExport,
    key="export_id",
    clock="created_at",
    codecs={"document": json_of(Export)},
    missing=Missing(
        "no export {key!r}", "the id of an export of this project", "see the exports on the page of the model"
    ),
)


class ExportStore(Store):
    """The exports of all projects."""

    def add(self, export: ServerExport, job: Job) -> ServerExport:
        """Store an export that is to be made, and queue its job: both or neither.

        Args:
            export: Its time is set here.
            job: Of the export.
        """
        with self._write() as connection:
            # The clock of the database: servers that share it may have clocks that differ.
            now = self._database.clock(connection)
            add_job(connection, now, job)
            return _EXPORTS.insert(connection, export, now)

    def finish(self, export_id: str, made: Export) -> None:
        """Store what was made.

        Args:
            export_id: The export.
            made: Its files and its proof.

        Raises:
            NotFoundError: It was deleted.
        """
        with self._write() as connection:
            _EXPORTS.change(connection, export_id, {"document": made.model_dump_json()})

    def get(self, project_id: str, export_id: str) -> ServerExport:
        """One export.

        Raises:
            NotFoundError: The project has no such export.
        """
        return self._get(_EXPORTS, export_id, project_id=project_id)

    def list(self, project_id: str, *, sources: Sequence[str] | None = None) -> list[ServerExport]:
        """The project's exports, newest first; those of some sources where they are named."""
        named = [] if sources is None else [exports.c.source.in_(sources)]
        return self._list(_EXPORTS, *named, project_id=project_id)

    def remove(self, project_id: str, export_id: str) -> None:
        """Forget an export; files stay.

        Raises:
            NotFoundError: The project has no such export.
        """
        with self._write() as connection:
            _EXPORTS.remove(connection, export_id, project_id=project_id)
