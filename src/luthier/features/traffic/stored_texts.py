"""What chat completions and responses that are stored have in common: whose they are, since when, and until when.

Unlike the traffic log, which the project's policy fills, they are kept because a request says so, with their texts as
they are, for `stored_completion_days`. A project whose policy is `off` stores none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Final, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, delete

from luthier.core.access import Caller
from luthier.core.errors import UnsupportedError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import fitted
from luthier.features.traffic.policy import traffic_policy
from luthier.platform.db.store import RecordTable, Store
from luthier.platform.home.context import Context

Order = Literal["asc", "desc"]
_DAY_SECONDS: Final = 86_400.0
_AT_ONCE: Final = 200
_MODEL_CHARACTERS: Final = 255


class StoredText(FrozenModel):
    """A request with its answer.

    Attributes:
        project_id: The project that it belongs to.
        model: As requested; a long name as `stored_model` gives it.
        user_digest: The end user, as in the traffic log; empty for none.
        labels: The metadata of the request.
        created_at: Seconds since 1970 by the database's clock.
    """

    project_id: str
    model: str
    user_digest: str
    labels: dict[str, str]
    created_at: float = 0.0


Stored = TypeVar("Stored", bound=StoredText)


def stored_model(name: str) -> str:
    """The name of a model as the column has it: that of a folder may have any length."""
    return fitted(name, _MODEL_CHARACTERS)


class StoredTextStore(Store, Generic[Stored]):
    """The stored texts of one kind, of all projects. Every method is one short transaction."""

    records: ClassVar[RecordTable]  # type: ignore[type-arg]

    def add(self, one: Stored) -> Stored:
        """Keep a new one."""
        made: Stored = self._insert(self.records, one)
        return made

    def remove(self, project_id: str, key: str) -> None:
        """Delete one.

        Raises:
            NotFoundError: The project has no such record.
        """
        self._delete(self.records, key, project_id=project_id)

    def forget(self, project_id: str, digest: str) -> int:
        """Delete all of an end user, and return how many there were."""
        table = self.records.table
        with self._write() as connection:
            is_theirs = (table.c.project_id == project_id) & (table.c.user_digest == digest)
            return connection.execute(delete(table).where(is_theirs)).rowcount

    def sweep(self, older_than_seconds: float) -> None:
        """Delete all that are older than so many seconds."""
        table = self.records.table
        with self._write() as connection:
            oldest = self._database.clock(connection) - older_than_seconds
            connection.execute(delete(table).where(table.c.created_at < oldest))

    def some(
        self,
        project_id: str,
        *,
        model: str | None,
        beyond: int | None,
        limit: int,
        order: Order = "asc",
        since: float | None = None,
        until: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> list[tuple[int, Stored]]:
        """The next of them, each with the number of its row.

        Args:
            project_id: The project.
            model: Only answers of this model.
            beyond: The number of the row behind which they begin; None for the first.
            limit: The most of them.
            order: The oldest or the newest first.
            since: Seconds since 1970, included.
            until: Seconds since 1970, included.
            metadata: Labels that all of them have; some others may come as well.
        """
        columns = self.records.table.c
        where: list[ColumnElement[bool]] = [columns.project_id == project_id]
        where += [] if model is None else [columns.model == stored_model(model)]
        where += [] if since is None else [columns.created_at >= since]
        where += [] if until is None else [columns.created_at <= until]
        # As `json.dumps` writes it. Without this the texts of a whole project would be read for one page.
        where += [
            columns.labels.contains(f"{json.dumps(name)}: {json.dumps(value)}", autoescape=True)
            for name, value in (metadata or {}).items()
        ]
        if beyond is not None:
            where.append(columns.number > beyond if order == "asc" else columns.number < beyond)
        ordered = [columns.number.asc() if order == "asc" else columns.number.desc()]
        query = self.records.query(*where, order=ordered, limit=limit).add_columns(columns.number)
        return [(row["number"], self.records.of_row(row)) for row in self._rows(query)]

    def each(
        self,
        project_id: str,
        metadata: Mapping[str, str],
        *,
        model: str | None = None,
        beyond: int | None = None,
        order: Order = "asc",
        since: float | None = None,
        until: float | None = None,
        fits: Callable[[Stored], bool] = lambda _: True,
    ) -> Iterator[Stored]:
        """All that meet the conditions, read a few at a time.

        Args:
            project_id: The project.
            metadata: Labels that all of them have.
            model: Only answers of this model.
            beyond: As of `some`.
            order: The oldest or the newest first.
            since: Seconds since 1970, included.
            until: Seconds since 1970, included.
            fits: A further condition.
        """
        while True:
            found = self.some(
                project_id,
                model=model,
                beyond=beyond,
                order=order,
                limit=_AT_ONCE,
                since=since,
                until=until,
                metadata=metadata,
            )
            for _, one in found:
                # The databases compare text, in which a value may hold what looks like another label, in any case.
                if all(one.labels.get(name) == value for name, value in metadata.items()) and fits(one):
                    yield one
            if len(found) < _AT_ONCE:
                return
            beyond = found[-1][0]


def lifetime_seconds(context: Context) -> float:
    """How long a text is kept."""
    return context.settings.stored_completion_days * _DAY_SECONDS


def may_store(context: Context, project_id: str) -> bool:
    """Whether a project stores texts: one that keeps none of its traffic does not."""
    return context.only is None and traffic_policy(context, project_id).keep != "off"


def check_stores(
    context: Context, caller: Caller, way_out: str, *, came: str = "store: true", param: str = "store"
) -> None:
    """Raise UnsupportedError where neither server nor project stores texts.

    Args:
        context: The home.
        caller: Whose project it is.
        way_out: What a client may send instead.
        came: What would be stored.
        param: The parameter that asks for it.
    """
    if may_store(context, caller.project_id):
        return
    what = "a server for some models alone" if context.only is not None else "a project whose traffic policy is off"
    raise UnsupportedError(
        f"{came}, at {what}",
        expected="a project that keeps some of its traffic",
        do=f"{way_out}, or have an admin change the policy: luthier traffic policy --keep metadata",
        code="unsupported_value",
        param=param,
    )
