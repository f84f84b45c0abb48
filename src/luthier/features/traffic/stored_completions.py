"""Use cases: chat completions that a client asked to store (`store: true`): keep, list, read, label and delete them.

Unlike the traffic log, which the project's policy fills, they are kept because the request says so, with their texts as
they are, for `stored_completion_days`. A project whose policy is `off` stores none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import select

from luthier.core.access import Caller
from luthier.features.traffic.policy import user_digest, user_key
from luthier.features.traffic.stored_texts import (
    Order,
    StoredText,
    StoredTextStore,
    check_stores,
    lifetime_seconds,
    stored_model,
)
from luthier.platform.audit_log.service import record
from luthier.platform.db.database import Database
from luthier.platform.db.store import Codec, DeletedPositions, Missing, RecordTable
from luthier.platform.db.tables import stored_completions
from luthier.platform.home.context import Context


class StoredCompletion(StoredText):
    """A chat completion with its request.

    Attributes:
        completion_id: The id of the answer, `chatcmpl-...`.
        document: `request` and `response`, as the API has them.
    """

    completion_id: str
    document: dict[str, Any]


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


class StoredCompletionStore(StoredTextStore[StoredCompletion]):
    """The stored chat completions of all projects. Every method is one short transaction."""

    records = _COMPLETIONS

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._places: DeletedPositions[int] = DeletedPositions()

    def remove(self, project_id: str, key: str) -> None:
        """Delete one.

        Raises:
            NotFoundError: The project has no such record.
        """
        place = self._place(project_id, key)
        super().remove(project_id, key)
        self._places.keep(project_id, key, place)

    def get(self, project_id: str, completion_id: str) -> StoredCompletion:
        """One of them.

        Raises:
            NotFoundError: The project has no such completion.
        """
        return self._get(_COMPLETIONS, completion_id, project_id=project_id)

    def change_labels(self, project_id: str, completion_id: str, labels: Mapping[str, str]) -> None:
        """Replace the metadata of a completion.

        Args:
            project_id: The project of the completion.
            completion_id: The completion.
            labels: All of its metadata; what is missing here is deleted.

        Raises:
            NotFoundError: The project has no such completion.
        """
        with self._write() as connection:
            _COMPLETIONS.change(connection, completion_id, {"labels": json.dumps(labels)}, project_id=project_id)

    def place_of(self, project_id: str, completion_id: str) -> int:
        """The number of its row, also of one that was deleted lately.

        Raises:
            UnsupportedError: The project has no such completion, or it was deleted before the last start of the server.
        """
        place = self._place(project_id, completion_id)
        return self._places.place_of(project_id, completion_id, place, "the id of one of them")

    def _place(self, project_id: str, completion_id: str) -> int | None:
        columns = stored_completions.c
        is_it = (columns.project_id == project_id) & (columns.completion_id == completion_id)
        found: int | None = self._scalar(select(columns.number).where(is_it))
        return found


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
    check_stores(context, caller, "leave `store` out")

    def keep(response: dict[str, Any], user: str) -> None:
        digest = user_digest(user_key(context, caller.project_id), user) if user else ""
        context.stored_completions.add(
            StoredCompletion(
                completion_id=response["id"],
                project_id=caller.project_id,
                model=stored_model(str(request["model"])),
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

    Args:
        context: The home.
        caller: Whose project it is.
        after: The id of the completion before the page; None begins at the first.
        limit: The most completions.
        order: `asc` for the oldest first, `desc` for the newest.
        model: Only completions of this model; None for all.
        metadata: Keys and values that a completion must have, all of them.

    Raises:
        UnsupportedError: `after` is none of them, or was deleted before the last start of the server.
    """
    beyond = None if after is None else context.stored_completions.place_of(caller.project_id, after)
    found: list[StoredCompletion] = []
    for one in context.stored_completions.each(caller.project_id, metadata, model=model, beyond=beyond, order=order):
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
    """The stored completions that meet all conditions, the oldest first, read a few at a time.

    Args:
        context: The home.
        project_id: The project.
        metadata: Keys and values that a completion must have, all of them.
        model: Only completions of this model; None for all.
        since: In seconds since 1970; completions of that moment are included. None for no start.
        until: In seconds since 1970, not included; None for no end.
    """
    return context.stored_completions.each(project_id, metadata, model=model, since=since, until=until)


def update_metadata(
    context: Context, caller: Caller, completion_id: str, metadata: Mapping[str, str] | None
) -> StoredCompletion:
    """Replace the metadata of a completion.

    Args:
        context: The home.
        caller: Whose project it is.
        completion_id: The completion.
        metadata: All of it; None for none.

    Raises:
        NotFoundError: The project has no such completion.
    """
    with context.database.transaction():
        context.stored_completions.change_labels(caller.project_id, completion_id, metadata or {})
        record(context, caller, "stored_completion.updated", completion_id)
    return context.stored_completions.get(caller.project_id, completion_id)


def delete_completion(context: Context, caller: Caller, completion_id: str) -> None:
    """Delete a stored completion.

    Raises:
        NotFoundError: The project has no such completion.
    """
    with context.database.transaction():
        context.stored_completions.remove(caller.project_id, completion_id)
        record(context, caller, "stored_completion.deleted", completion_id)


def sweep_stored_completions(context: Context) -> None:
    """Delete what has been kept for long enough."""
    context.stored_completions.sweep(lifetime_seconds(context))
