"""Use cases: chat completions that a client asked to store (`store: true`): keep, list, read, label and delete them.

Unlike the traffic log, which the project's policy fills, they are kept because the request says so, with their texts as
they are, for `stored_completion_days`. A project whose policy is `off` stores none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, delete, select

from luthier.core.access import Caller
from luthier.core.errors import RequestError, UnsupportedError
from luthier.core.frozen_model import FrozenModel
from luthier.features.traffic.policy import traffic_policy, user_digest, user_key
from luthier.platform.audit_log.service import record
from luthier.platform.db.store import Codec, Missing, RecordTable, Store
from luthier.platform.db.tables import stored_completions
from luthier.platform.home.context import Context

Order = Literal["asc", "desc"]
_DAY_SECONDS: Final = 86_400.0
_AT_ONCE: Final = 200


class StoredCompletion(FrozenModel):
    """A chat completion with its request.

    Attributes:
        completion_id: The id of the answer, `chatcmpl-...`.
        project_id: The project that it belongs to.
        model: As requested.
        user_digest: The end user, as in the traffic log; empty for none.
        labels: The metadata of the request.
        document: `request` and `response`, as the API has them.
        created_at: Seconds since 1970 by the database's clock.
    """

    completion_id: str
    project_id: str
    model: str
    user_digest: str
    labels: dict[str, str]
    document: dict[str, Any]
    created_at: float = 0.0


_JSON: Final = Codec(json.dumps, json.loads)
_COMPLETIONS: Final = RecordTable(
    stored_completions,
    StoredCompletion,
    key="completion_id",
    clock="created_at",
    codecs={"labels": _JSON, "document": _JSON},
    missing=Missing(
        "no stored chat completion {key!r}",
        "the id of one that this project has stored (`store: true`)",
        "list them: GET /v1/chat/completions",
    ),
)


class StoredCompletionStore(Store):
    """The stored chat completions of all projects. Every method is one short transaction."""

    def add(self, one: StoredCompletion) -> StoredCompletion:
        """Keep a new one."""
        return self._insert(_COMPLETIONS, one)

    def get(self, project_id: str, completion_id: str) -> StoredCompletion:
        """One of them. Raises NotFoundError, also for another project's."""
        return self._get(_COMPLETIONS, completion_id, project_id=project_id)

    def change_labels(self, project_id: str, completion_id: str, labels: Mapping[str, str]) -> None:
        """Set its metadata. Raises NotFoundError."""
        with self._write() as connection:
            _COMPLETIONS.change(connection, completion_id, {"labels": json.dumps(labels)}, project_id=project_id)

    def remove(self, project_id: str, completion_id: str) -> None:
        """Delete one. Raises NotFoundError."""
        self._delete(_COMPLETIONS, completion_id, project_id=project_id)

    def forget(self, project_id: str, digest: str) -> int:
        """Delete all of an end user, and return how many there were."""
        columns = stored_completions.c
        with self._write() as connection:
            is_theirs = (columns.project_id == project_id) & (columns.user_digest == digest)
            return connection.execute(delete(stored_completions).where(is_theirs)).rowcount

    def sweep(self, older_than_seconds: float) -> None:
        """Delete all that are older than so many seconds."""
        with self._write() as connection:
            oldest = self._database.clock(connection) - older_than_seconds
            connection.execute(delete(stored_completions).where(stored_completions.c.created_at < oldest))

    def place_of(self, project_id: str, completion_id: str) -> int | None:
        """The number of its row; None where the project has no such completion."""
        columns = stored_completions.c
        is_it = (columns.project_id == project_id) & (columns.completion_id == completion_id)
        found: int | None = self._scalar(select(columns.number).where(is_it))
        return found

    def some(
        self,
        project_id: str,
        *,
        model: str | None,
        beyond: int | None,
        order: Order,
        limit: int,
        since: float | None = None,
        until: float | None = None,
    ) -> list[tuple[int, StoredCompletion]]:
        """The next completions, each with the number of its row.

        Args:
            project_id: The project.
            model: Only answers of this model.
            beyond: The number of the row behind which they begin; None for the first.
            order: The oldest or the newest first.
            limit: The most of them.
            since: Seconds since 1970, included.
            until: Seconds since 1970, included.
        """
        columns = stored_completions.c
        where: list[ColumnElement[bool]] = [columns.project_id == project_id]
        where += [] if model is None else [columns.model == model]
        where += [] if since is None else [columns.created_at >= since]
        where += [] if until is None else [columns.created_at <= until]
        if beyond is not None:
            where.append(columns.number > beyond if order == "asc" else columns.number < beyond)
        ordered = [columns.number.asc() if order == "asc" else columns.number.desc()]
        query = _COMPLETIONS.query(*where, order=ordered, limit=limit).add_columns(columns.number)
        return [(row["number"], _COMPLETIONS.of_row(row)) for row in self._rows(query)]


def completion_recorder(
    context: Context, caller: Caller, request: Mapping[str, Any]
) -> Callable[[dict[str, Any], str], None]:
    """What stores the answer to a request: called with the response and the end user, once the answer is complete.

    Args:
        context: The home.
        caller: Whose project stores it.
        request: The body of the request.

    Raises:
        UnsupportedError: The server or the project stores no texts.
    """
    if context.only is not None or traffic_policy(context, caller.project_id).keep == "off":
        what = "a server for some models alone" if context.only is not None else "a project whose traffic policy is off"
        raise UnsupportedError(
            f"store: true, at {what}",
            expected="a project that keeps some of its traffic",
            do="leave `store` out, or have an admin change the policy: luthier traffic policy --keep metadata",
            code="unsupported_value",
            param="store",
        )

    def keep(response: dict[str, Any], user: str) -> None:
        digest = user_digest(user_key(context, caller.project_id), user) if user else ""
        context.stored_completions.add(
            StoredCompletion(
                completion_id=response["id"],
                project_id=caller.project_id,
                model=str(request["model"]),
                user_digest=digest,
                labels=request.get("metadata") or {},
                document={"request": dict(request), "response": response},
            )
        )

    return keep


def page_of_completions(
    context: Context,
    caller: Caller,
    *,
    after: str | None,
    limit: int,
    order: Order,
    model: str | None,
    metadata: Mapping[str, str],
) -> tuple[list[StoredCompletion], bool]:
    """One page of the stored completions of a project, and whether more follow.

    Raises:
        RequestError: `after` is none of them.
    """
    beyond = None if after is None else context.stored_completions.place_of(caller.project_id, after)
    if after is not None and beyond is None:
        raise RequestError(
            f"after={after[:100]!r} is not in this list", expected="the id of one of them", do="begin again without it"
        )
    found: list[StoredCompletion] = []
    for one in _each(context, caller.project_id, metadata, model=model, beyond=beyond, order=order):
        found.append(one)
        # One more than the page has shows that another page follows.
        if len(found) > limit:
            break
    return found[:limit], len(found) > limit


def matching(
    context: Context,
    project_id: str,
    *,
    metadata: Mapping[str, str],
    model: str | None = None,
    since: float | None = None,
    until: float | None = None,
) -> Iterator[StoredCompletion]:
    """The stored completions that meet all conditions, the oldest first, read a few at a time."""
    return _each(context, project_id, metadata, model=model, beyond=None, order="asc", since=since, until=until)


def update_metadata(
    context: Context, caller: Caller, completion_id: str, metadata: Mapping[str, str] | None
) -> StoredCompletion:
    """Set the metadata of a completion. Raises NotFoundError."""
    with context.database.transaction():
        context.stored_completions.change_labels(caller.project_id, completion_id, metadata or {})
        record(context, caller, "stored_completion.updated", completion_id)
    return context.stored_completions.get(caller.project_id, completion_id)


def delete_completion(context: Context, caller: Caller, completion_id: str) -> None:
    """Delete a stored completion. Raises NotFoundError."""
    with context.database.transaction():
        context.stored_completions.remove(caller.project_id, completion_id)
        record(context, caller, "stored_completion.deleted", completion_id)


def sweep_stored_completions(context: Context) -> None:
    """Delete what has been kept for long enough."""
    context.stored_completions.sweep(context.settings.stored_completion_days * _DAY_SECONDS)


def _each(
    context: Context,
    project_id: str,
    metadata: Mapping[str, str],
    *,
    model: str | None,
    beyond: int | None,
    order: Order,
    since: float | None = None,
    until: float | None = None,
) -> Iterator[StoredCompletion]:
    while True:
        found = context.stored_completions.some(
            project_id, model=model, beyond=beyond, order=order, limit=_AT_ONCE, since=since, until=until
        )
        # Labels are inside a JSON document, which the two databases would filter in different ways.
        yield from (one for _, one in found if all(one.labels.get(key) == value for key, value in metadata.items()))
        if len(found) < _AT_ONCE:
            return
        beyond = found[-1][0]
