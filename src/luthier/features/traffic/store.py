"""The index of files of exchanges: what each holds, so that it need not be opened to know whether it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, delete, select

from luthier.core.records.traffic import TrafficFile
from luthier.platform.db.store import JSON, RecordTable, Store
from luthier.platform.db.tables import feedback, review_items, traffic_files

_MAX_IDS: Final = 500
_FILES: Final = RecordTable(traffic_files, TrafficFile, renamed={"document": "num_by_hour"}, codecs={"document": JSON})


class TrafficStore(Store):
    """The files of all projects."""

    def list(
        self, project_id: str, *, since: float | None = None, until: float | None = None, day: str | None = None
    ) -> list[TrafficFile]:
        """Files of a project's traffic, oldest first.

        Args:
            project_id: The project.
            since: Only files with exchanges of this time or later, in seconds since 1970; None for no start.
            until: Only files with exchanges before this time, in seconds since 1970; None for no end.
            day: Only files of this day in UTC, `2026-11-30`; None for all.
        """
        columns = traffic_files.c
        # Two intervals overlap if each begins before the other ends.
        where = [] if since is None else [columns.last_at >= since]
        where += [] if until is None else [columns.first_at < until]
        return self._list(_FILES, *where, order=[columns.day, columns.number], project_id=project_id, day=day)

    def projects(self) -> Sequence[str]:
        """The projects that have files."""
        project_id = traffic_files.c.project_id
        return self._scalars(select(project_id).distinct().order_by(project_id))

    def replace(self, removed: Sequence[TrafficFile], added: Sequence[TrafficFile]) -> None:
        """Replace files of the index by others, all or none.

        Args:
            removed: Files to take out.
            added: Files with the same exchanges.
        """
        with self._write() as connection:
            _replace(connection, removed, added)

    def forget(
        self, project_id: str, exchange_ids: Sequence[str], removed: Sequence[TrafficFile], added: Sequence[TrafficFile]
    ) -> None:
        """As `replace`; in the same transaction the feedback on some exchanges and their items for review are deleted.

        Args:
            project_id: The project.
            exchange_ids: The exchanges.
            removed: Files that held them.
            added: Files with the other exchanges of these files.
        """
        with self._write() as connection:
            _replace(connection, removed, added)
            for begin in range(0, len(exchange_ids), _MAX_IDS):
                ids = exchange_ids[begin : begin + _MAX_IDS]
                for table in (feedback, review_items):
                    is_it = (table.c.project_id == project_id) & table.c.exchange_id.in_(ids)
                    connection.execute(delete(table).where(is_it))


def _replace(connection: Connection, removed: Sequence[TrafficFile], added: Sequence[TrafficFile]) -> None:
    for one in [*removed, *added]:  # an added one may be there already, where a kill came before its source was removed
        is_it = (traffic_files.c.project_id == one.project_id) & (traffic_files.c.file == one.file)
        connection.execute(delete(traffic_files).where(is_it))
    for one in added:
        _FILES.insert(connection, one)
