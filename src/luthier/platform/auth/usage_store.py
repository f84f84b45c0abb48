"""What was asked of models, summed up by project, key, day, model and target."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, func, insert, select, update

from luthier.platform.auth.usage_records import DayOfUse, Use
from luthier.platform.db.database import Database
from luthier.platform.db.tables import model_usage

_MOST_NAME_CHARACTERS = 255


class UsageStore:
    """The sums of all projects. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, use: Use) -> None:
        """Count one answer on today (UTC, by the database's clock)."""
        with self._database.write() as connection:
            now = self._database.clock(connection)
            add_use(connection, day_of(now), use)

    def list(self, project_id: str, *, since: str | None = None, model: str | None = None) -> list[DayOfUse]:
        """The sums of a project, newest day first; from a day on, and of one model as it was asked for."""
        query = select(model_usage).where(model_usage.c.project_id == project_id)
        if since is not None:
            query = query.where(model_usage.c.day >= since)
        if model is not None:
            query = query.where(model_usage.c.model == model)
        order = (model_usage.c.day.desc(), model_usage.c.model, model_usage.c.target, model_usage.c.key_id)
        with self._database.read() as connection:
            return [DayOfUse(**row) for row in connection.execute(query.order_by(*order)).mappings()]

    def num_requests(self, project_id: str, models: Sequence[str]) -> dict[tuple[str, str], int]:
        """How many requests each target of these models has answered, by model and target."""
        query = select(model_usage.c.model, model_usage.c.target, func.sum(model_usage.c.num_requests))
        query = query.where(model_usage.c.project_id == project_id, model_usage.c.model.in_(models))
        with self._database.read() as connection:
            rows = connection.execute(query.group_by(model_usage.c.model, model_usage.c.target))
            return {(model, target): int(count) for model, target, count in rows}


def day_of(seconds: float) -> str:
    """The day of a time (seconds since 1970) in UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def add_use(connection: Connection, day: str, use: Use) -> None:
    """Count one answer within a transaction that writes: those stand in a queue, so a sum that was read still holds."""
    key = {
        "project_id": use.project_id,
        "key_id": use.key_id,
        "day": day,
        "model": use.model[:_MOST_NAME_CHARACTERS],
        "target": use.target[:_MOST_NAME_CHARACTERS],
    }
    is_it = [model_usage.c[name] == value for name, value in key.items()]
    more = {
        "num_requests": model_usage.c.num_requests + 1,
        "num_prompt_tokens": model_usage.c.num_prompt_tokens + use.num_prompt_tokens,
        "num_new_tokens": model_usage.c.num_new_tokens + use.num_new_tokens,
    }
    if use.cost_usd is not None:
        more["cost_usd"] = func.coalesce(model_usage.c.cost_usd, 0.0) + use.cost_usd
    if connection.execute(update(model_usage).where(*is_it).values(**more)).rowcount == 0:
        tokens = {"num_prompt_tokens": use.num_prompt_tokens, "num_new_tokens": use.num_new_tokens}
        connection.execute(insert(model_usage).values(**key, num_requests=1, **tokens, cost_usd=use.cost_usd))
