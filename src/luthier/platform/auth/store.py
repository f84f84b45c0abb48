"""Stores of projects, keys and their usage. Of a key only its digest is kept, so the database reveals none.

Usage is summed up by project, key, day, requested model, and the target that has answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, func, insert, select, update

from luthier.core.access import ApiKey, Project
from luthier.core.errors import ConflictError, NotFoundError, QuotaError
from luthier.core.frozen_model import FrozenModel
from luthier.platform.db.store import WORDS, Missing, RecordTable, Store
from luthier.platform.db.tables import api_keys, key_usage, model_usage, projects


class Use(FrozenModel):
    """The usage of one answer.

    Attributes:
        project_id: The project that asked.
        key_id: The key that asked; empty without a key.
        model: The model as requested.
        target: The model that answered.
        num_prompt_tokens: Tokens of the prompt.
        num_new_tokens: Tokens of the answer.
        cost_usd: Its price in US dollars; None if no prices were set.
    """

    project_id: str
    key_id: str
    model: str
    target: str
    num_prompt_tokens: int
    num_new_tokens: int
    cost_usd: float | None = None


class DayOfUse(Use):
    """The same summed up over a day.

    Attributes:
        day: In UTC, ISO 8601.
        num_requests: How many answers are summed up.
    """

    day: str
    num_requests: int


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
        """Sums of use of a project, newest day first.

        Args:
            project_id: The project.
            since: Only this day in UTC and later ones, `2026-11-30`; None for all.
            model: Only this model; None for all.
        """
        columns = model_usage.c
        order = [columns.day.desc(), columns.model, columns.target, columns.key_id]
        where = [] if since is None else [columns.day >= since]
        return self._list(_USAGE, *where, order=order, project_id=project_id, model=model)

    def num_requests(self, project_id: str, models: Sequence[str]) -> dict[tuple[str, str], int]:
        """How many requests each target of these models has answered, by model and target."""
        if not models:
            return {}
        by, count = (model_usage.c.model, model_usage.c.target), func.sum(model_usage.c.num_requests).label("num")
        query = select(*by, count).where(model_usage.c.project_id == project_id, model_usage.c.model.in_(models))
        return {(row["model"], row["target"]): int(row["num"]) for row in self._rows(query.group_by(*by))}


def day_of(seconds: float) -> str:
    """The day of a time (seconds since 1970) in UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def add_use(connection: Connection, day: str, use: Use) -> None:
    """Count one answer within a transaction that writes: these are serialised, so a sum that was read still holds.

    Args:
        connection: Of the transaction.
        day: The day in UTC, `2026-11-30`.
        use: The key, the model and the tokens of the answer.
    """
    key = {
        "project_id": use.project_id,
        "key_id": use.key_id,
        "day": day,
        "model": use.model[:_MAX_NAME_CHARACTERS],
        "target": use.target[:_MAX_NAME_CHARACTERS],
    }
    # Update, and insert where no row was updated: the same statements work in SQLite and PostgreSQL.
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


_PROJECTS: Final = RecordTable(projects, Project, clock="created_at")
KEYS: Final = RecordTable(
    api_keys,
    ApiKey,
    key="key_id",
    clock="created_at",
    codecs={"scopes": WORDS},
    missing=Missing("no key {key!r}", "the id of a key", "see `luthier keys list`"),
)
"""The keys of all projects."""


class AccessStore(Store):
    """Who may come in."""

    def add_project(self, project_id: str, name: str) -> Project:
        """Make a project.

        Raises:
            ConflictError: The id or the name is taken.
        """
        conflict = ConflictError(
            f"a project {name!r} exists already", expected="a new name", do="use that one, or choose another name"
        )
        with self._write(conflict) as connection:
            project = Project(project_id=project_id, name=name, created_at=0.0)
            return _PROJECTS.insert(connection, project, self._database.clock(connection))

    def rename_project(self, project_id: str, name: str) -> Project:
        """Give a project another name.

        Raises:
            NotFoundError: There is no such project.
            ConflictError: Another project has the name.
        """
        conflict = ConflictError(
            f"a project {name!r} exists already", expected="a unique name", do="choose another name"
        )
        known = self.project(project_id)
        with self._write(conflict) as connection:
            connection.execute(update(projects).where(projects.c.project_id == known.project_id).values(name=name))
        return self.project(known.project_id)

    def set_file_quota(self, project_id: str, max_file_bytes: int | None) -> Project:
        """Set how many bytes the files of a project may take; None for no limit.

        Raises:
            NotFoundError: There is no such project.
        """
        known = self.project(project_id)
        with self._write() as connection:
            is_it = projects.c.project_id == known.project_id
            connection.execute(update(projects).where(is_it).values(max_file_bytes=max_file_bytes))
        return self.project(known.project_id)

    def projects(self) -> list[Project]:
        """All projects, oldest first."""
        return self._list(_PROJECTS, order=[projects.c.number])

    def project(self, name_or_id: str) -> Project:
        """One project by its name or id.

        Raises:
            NotFoundError: There is no such project.
        """
        known = self.projects()
        for project in known:
            if name_or_id in (project.project_id, project.name):
                return project
        raise NotFoundError(
            f"no project {name_or_id!r}",
            expected=f"one of {', '.join(project.name for project in known)}",
            do="correct the name, or create it: luthier projects create NAME",
        )

    def add_key(self, key: ApiKey, digest: str) -> ApiKey:
        """Store a key; its time is set here, by the database's clock.

        Args:
            key: Without its text, which is not stored.
            digest: SHA-256 of its text.
        """
        with self._write() as connection:
            return self._add_key(connection, key, digest)

    def add_first_key(self, key: ApiKey, digest: str) -> ApiKey | None:
        """Store a key where there is none yet, not even a revoked one; None where there is one by now.

        Args:
            key: Without its text, which is not stored.
            digest: SHA-256 of its text.
        """
        with self._write() as connection:
            # Writers take turns, so of two processes that start together only one finds the table empty.
            if KEYS.first(connection) is not None:
                return None
            return self._add_key(connection, key, digest)

    def key_of(self, digest: str) -> ApiKey | None:
        """The key with this digest, also a revoked or expired one; None where there is none."""
        return self._find(KEYS, digest=digest)

    def key_and_now(self, digest: str) -> tuple[ApiKey | None, float]:
        """The same, and the database's clock, in one read."""
        with self._database.read() as connection:
            now = self._database.clock(connection)
            return KEYS.first(connection, digest=digest), now

    def key_by_id(self, key_id: str) -> tuple[ApiKey | None, float]:
        """A key by its id, also a revoked or expired one, and the database's clock, in one read."""
        with self._database.read() as connection:
            now = self._database.clock(connection)
            return KEYS.first(connection, key_id=key_id), now

    def now(self) -> float:
        """The database's clock."""
        with self._database.read() as connection:
            return self._database.clock(connection)

    def keys(self, project_id: str | None = None) -> list[ApiKey]:
        """All keys, newest first, or those of one project."""
        return self._list(KEYS, project_id=project_id)

    def revoke(self, key_id: str, project_id: str | None = None) -> tuple[ApiKey, bool]:
        """Revoke a key; a second time changes nothing.

        Returns:
            The key, and whether it was revoked by this call.

        Raises:
            NotFoundError: There is no such key, or it is of another project.
        """
        is_it = [api_keys.c.key_id == key_id, *KEYS.where(project_id=project_id)]
        with self._write() as connection:
            now = self._database.clock(connection)
            # Only where it is not revoked yet: the first time stays.
            revoked = update(api_keys).where(*is_it, api_keys.c.revoked_at.is_(None)).values(revoked_at=now)
            is_new = connection.execute(revoked).rowcount > 0
            return KEYS.get(connection, key_id, project_id=project_id), is_new

    def charge(self, key_id: str, num_tokens: int, *, may_refuse: bool, use: Use | None = None) -> int | None:
        """Add to what a key has used today (UTC, by the database's clock).

        Args:
            key_id: The key.
            num_tokens: The tokens to add.
            may_refuse: Whether to refuse where no tokens are left.
            use: What the tokens were for, counted with them.

        Returns:
            The tokens that are left today; None for no limit.

        Raises:
            QuotaError: No tokens were left and `may_refuse` is true; none were added.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            day = day_of(now)
            limit = connection.execute(
                select(api_keys.c.tokens_per_day).where(api_keys.c.key_id == key_id)
            ).scalar_one_or_none()
            is_it = (key_usage.c.key_id == key_id) & (key_usage.c.day == day)
            # Read and written within one write transaction: no other request can charge in between.
            used = connection.execute(select(key_usage.c.num_tokens).where(is_it)).scalar_one_or_none()
            if limit is not None and may_refuse and (used or 0) >= limit:
                raise QuotaError(
                    f"the key {key_id} has used {used or 0:,} of its {limit:,} tokens of {day} (UTC)",
                    expected="a day's tokens not yet used up",
                    do="wait for the next day (UTC), or create a key with a larger --tokens-per-day",
                )
            if used is None:
                start = {"key_id": key_id, "day": day, "num_requests": 1, "num_tokens": num_tokens}
                connection.execute(insert(key_usage).values(**start))
            else:
                more = {"num_requests": key_usage.c.num_requests + 1, "num_tokens": used + num_tokens}
                connection.execute(update(key_usage).where(is_it).values(**more))
            if use is not None:
                add_use(connection, day, use)
        return None if limit is None else max(0, int(limit) - (used or 0) - num_tokens)

    def num_tokens_on(self, key_id: str, day: str) -> int:
        """How many tokens a key used on a day (UTC, ISO 8601)."""
        # The sum of no rows is NULL.
        query = select(func.sum(key_usage.c.num_tokens)).where(key_usage.c.key_id == key_id, key_usage.c.day == day)
        return int(self._scalar(query) or 0)

    def _add_key(self, connection: Connection, key: ApiKey, digest: str) -> ApiKey:
        return KEYS.insert(connection, key, self._database.clock(connection), digest=digest)
