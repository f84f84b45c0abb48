"""The index of files of exchanges: what each holds, so that it need not be opened to know whether it is wanted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from luthier.core.records.traffic import TrafficFile
from luthier.platform.db.database import Database
from luthier.platform.db.tables import feedback, review_items, traffic_files

_MAX_IDS = 500


class TrafficStore:
    """The files of all projects. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(
        self, project_id: str, *, since: float | None = None, until: float | None = None, day: str | None = None
    ) -> list[TrafficFile]:
        """A project's files that have exchanges of a time (seconds since 1970, `until` not included), oldest first."""
        query = select(traffic_files).where(traffic_files.c.project_id == project_id)
        if since is not None:
            query = query.where(traffic_files.c.last_at >= since)
        if until is not None:
            query = query.where(traffic_files.c.first_at < until)
        if day is not None:
            query = query.where(traffic_files.c.day == day)
        order = (traffic_files.c.day, traffic_files.c.number)
        with self._database.read() as connection:
            return [_file(row) for row in connection.execute(query.order_by(*order)).mappings()]

    def projects(self) -> Sequence[str]:
        """The projects that have files."""
        query = select(traffic_files.c.project_id).distinct().order_by(traffic_files.c.project_id)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def replace(self, removed: Sequence[TrafficFile], added: Sequence[TrafficFile]) -> None:
        """Take files out of the index and others in, all or none of it."""
        with self._database.write() as connection:
            _replace(connection, removed, added)

    def forget(
        self, project_id: str, exchange_ids: Sequence[str], removed: Sequence[TrafficFile], added: Sequence[TrafficFile]
    ) -> None:
        """As `replace`, and remove what people have said of these exchanges, and what waits of them for review."""
        with self._database.write() as connection:
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
    if added:
        connection.execute(insert(traffic_files), [_row(one) for one in added])


def _row(one: TrafficFile) -> dict[str, Any]:
    return one.model_dump(exclude={"num_by_hour"}) | {"document": json.dumps(one.num_by_hour)}


def _file(row: Any) -> TrafficFile:
    values = {name: row[name] for name in TrafficFile.model_fields if name != "num_by_hour"}
    return TrafficFile(**values, num_by_hour=json.loads(row["document"]))
