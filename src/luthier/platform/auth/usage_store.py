"""What was asked of models, summed up by project, key, day, model and target."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, func, insert, select, update

from luthier.platform.auth.usage_records import DayOfUse, Use
from luthier.platform.db.store import RecordTable, Store
from luthier.platform.db.tables import model_usage

_MAX_NAME_CHARACTERS: Final = 255
_USAGE: Final = RecordTable(model_usage, DayOfUse)


class UsageStore(Store):
    """The sums of all projects."""

    def add(self, use: Use) -> None:
        """Count one answer on today (UTC, by the database's clock)."""
        with self._write() as connection:
            now = self._database.clock(connection)
            add_use(connection, day_of(now), use)

    def list(self, project_id: str, *, since: str | None = None, model: str | None = None) -> list[DayOfUse]:
        """The sums of a project, newest day first; from a day on, and of one model as it was asked for."""
        columns = model_usage.c
        order = [columns.day.desc(), columns.model, columns.target, columns.key_id]
        where = [] if since is None else [columns.day >= since]
        return self._list(_USAGE, *where, order=order, project_id=project_id, model=model)

    def num_requests(self, project_id: str, models: Sequence[str]) -> dict[tuple[str, str], int]:
        """How many requests each target of these models has answered, by model and target."""
        by, count = (model_usage.c.model, model_usage.c.target), func.sum(model_usage.c.num_requests).label("num")
        query = select(*by, count).where(model_usage.c.project_id == project_id, model_usage.c.model.in_(models))
        return {(row["model"], row["target"]): int(row["num"]) for row in self._rows(query.group_by(*by))}


def day_of(seconds: float) -> str:
    """The day of a time (seconds since 1970) in UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def add_use(connection: Connection, day: str, use: Use) -> None:
    """Count one answer within a transaction that writes: these are serialised, so a sum that was read still holds."""
    key = {
        "project_id": use.project_id,
        "key_id": use.key_id,
        "day": day,
        "model": use.model[:_MAX_NAME_CHARACTERS],
        "target": use.target[:_MAX_NAME_CHARACTERS],
    }
    is_it = [model_usage.c[name] == value for name, value in key.items()]
    more = {
        "num_requests": model_usage.c.num_requests + 1,
        "num_prompt_tokens": model_usage.c.num_prompt_tokens + use.num_prompt_tokens,
        "num_new_tokens": model_usage.c.num_new_tokens + use.num_new_tokens,
    }
    if use.cost_usd is not None:
        # It stays NULL while no prices are set: that is not the same as a day that cost nothing.
        more["cost_usd"] = func.coalesce(model_usage.c.cost_usd, 0.0) + use.cost_usd
    if connection.execute(update(model_usage).where(*is_it).values(**more)).rowcount == 0:
        tokens = {"num_prompt_tokens": use.num_prompt_tokens, "num_new_tokens": use.num_new_tokens}
        connection.execute(insert(model_usage).values(**key, num_requests=1, **tokens, cost_usd=use.cost_usd))
