"""Use cases: answers of the Responses API that are stored, so that a later request can continue their conversation.

They are kept like stored chat completions: as the request has it, with their texts as they are, for
`stored_completion_days`. A response holds its own input and output; the conversation before it is that of the responses
which it names, so that each text is stored once and is gone once its response is deleted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import func, select

from luthier.core.access import Caller
from luthier.core.errors import UnsupportedError
from luthier.features.traffic.policy import user_digest, user_key
from luthier.features.traffic.stored_texts import (
    StoredText,
    StoredTextStore,
    check_stores,
    lifetime_seconds,
    may_store,
    stored_model,
)
from luthier.platform.audit_log.service import record
from luthier.platform.db.store import Codec, Missing, RecordTable
from luthier.platform.db.tables import stored_responses
from luthier.platform.home.context import Context

MAX_CHAIN: Final = 500
"""Responses of one conversation."""
MAX_CHAIN_CHARACTERS: Final = 16 << 20
"""Of all of their JSON: a conversation is read whole for each response that continues it."""
_ITEM_ID: Final = re.compile(r"[a-z]+_([0-9a-f]{32})[0-9a-f]{4}")


class StoredResponse(StoredText):
    """A response with its request.

    Attributes:
        response_id: Its id, `resp_...`.
        earlier_ids: The responses before it in its conversation, oldest first.
        document: `input`, the items of the request; `parameters`, its other fields; `response`, as the API has it.
    """

    response_id: str
    earlier_ids: tuple[str, ...]
    document: dict[str, Any]

    @property
    def items(self) -> list[dict[str, Any]]:
        """Its input and its output."""
        return [*self.document["input"], *self.document["response"]["output"]]


_JSON: Final = Codec(json.dumps, json.loads)
_RESPONSES: Final = RecordTable(
    stored_responses,
    StoredResponse,
    key="response_id",
    clock="created_at",
    codecs={
        "labels": _JSON,
        "document": _JSON,
        "earlier_ids": Codec(json.dumps, lambda text: tuple(json.loads(text))),
    },
    missing=Missing(
        "no stored response {key!r}",
        "the id of a response of this project that is stored, and has not expired",
        "store responses: leave `store` out, or send true",
    ),
)


class StoredResponseStore(StoredTextStore[StoredResponse]):
    """The stored responses of all projects. Every method is one short transaction."""

    records = _RESPONSES

    def get(self, project_id: str, response_id: str, *, newest_seconds: float) -> StoredResponse:
        """One of them.

        Args:
            project_id: The project.
            response_id: The response.
            newest_seconds: How old it may be.

        Raises:
            NotFoundError: The project has no such response, or it is older.
        """
        with self._database.read() as connection:
            is_young = stored_responses.c.created_at >= self._database.clock(connection) - newest_seconds
            is_it = stored_responses.c.response_id == response_id
            found = _RESPONSES.first(connection, is_it, is_young, project_id=project_id)
            if found is None:
                raise _RESPONSES.not_found(connection, response_id)
            return found

    def several(
        self, project_id: str, response_ids: Sequence[str], *, newest_seconds: float
    ) -> dict[str, StoredResponse]:
        """Those of some responses that are stored and not too old, by id.

        Args:
            project_id: The project of the responses.
            response_ids: The responses.
            newest_seconds: How old they may be.
        """
        with self._database.read() as connection:
            is_young = stored_responses.c.created_at >= self._database.clock(connection) - newest_seconds
            is_one = stored_responses.c.response_id.in_(response_ids)
            query = _RESPONSES.query(is_young, is_one, project_id=project_id)
            found = [_RESPONSES.of_row(row) for row in connection.execute(query).mappings()]
        return {one.response_id: one for one in found}

    def num_characters(self, project_id: str, response_ids: Sequence[str]) -> int:
        """Characters of the documents of those of these responses that are there."""
        columns = stored_responses.c
        is_one = (columns.project_id == project_id) & columns.response_id.in_(response_ids)
        return int(self._scalar(select(func.coalesce(func.sum(func.length(columns.document)), 0)).where(is_one)))


def response_recorder(
    context: Context,
    caller: Caller,
    *,
    parameters: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    earlier_ids: Sequence[str],
    wants: bool | None,
) -> Callable[[dict[str, Any], str], None] | None:
    """What stores the response, called with it and the end user once it is complete; None where it is not stored.

    Args:
        context: The home.
        caller: Whose project stores it.
        parameters: The body of the request without its input.
        items: The input.
        earlier_ids: The responses before it.
        wants: Whether the request asks for it; None stores it where the project stores texts.

    Raises:
        UnsupportedError: The request asks for it, and the server or the project stores no texts.
    """
    if wants is False:
        return None
    if wants is None and not may_store(context, caller.project_id):
        return None
    check_stores(context, caller, "send store: false")

    def keep(response: dict[str, Any], user: str) -> None:
        digest = user_digest(user_key(context, caller.project_id), user) if user else ""
        document = {"parameters": dict(parameters), "input": [dict(item) for item in items], "response": response}
        context.stored_responses.add(
            StoredResponse(
                response_id=response["id"],
                project_id=caller.project_id,
                model=stored_model(str(parameters["model"])),
                user_digest=digest,
                earlier_ids=tuple(earlier_ids),
                labels=parameters.get("metadata") or {},
                document=document,
            )
        )

    return keep


def stored_response(context: Context, caller: Caller, response_id: str) -> StoredResponse:
    """One response.

    Raises:
        NotFoundError: The project has no such response, or it has expired.
    """
    return context.stored_responses.get(caller.project_id, response_id, newest_seconds=lifetime_seconds(context))


def conversation_before(context: Context, caller: Caller, response_id: str) -> list[StoredResponse]:
    """A response and those before it in its conversation, oldest first.

    Raises:
        UnsupportedError: There is no such response in the project, one before it was deleted or has expired, or there
            are too many, or they are too large together.
    """
    if context.only is not None:
        raise _no_previous("previous_response_id, at a server for some models alone, which stores no responses")
    newest_seconds = lifetime_seconds(context)
    # One look more than a chain: the ids are known only once the last response is read.
    last = context.stored_responses.several(caller.project_id, [response_id], newest_seconds=newest_seconds)
    if response_id not in last:
        raise _no_previous(f"Previous response with id {response_id[:100]!r} not found")
    earlier = last[response_id].earlier_ids
    if len(earlier) + 1 >= MAX_CHAIN:
        raise _no_previous(f"a conversation of {len(earlier) + 1:,} responses, more than {MAX_CHAIN - 1:,}")
    # Summed up in the database: a conversation that is too large is refused before it is in memory.
    num_characters = context.stored_responses.num_characters(caller.project_id, (*earlier, response_id))
    if num_characters > MAX_CHAIN_CHARACTERS:
        raise UnsupportedError(
            f"a conversation of {num_characters:,} characters of JSON in stored responses",
            expected=f"at most {MAX_CHAIN_CHARACTERS:,}",
            do="send the newest turns as input items",
            code="conversation_too_large",
            param="previous_response_id",
        )
    found = context.stored_responses.several(caller.project_id, earlier, newest_seconds=newest_seconds) | last
    if missing := next((one for one in earlier if one not in found), None):
        raise _no_previous(f"Response {missing!r}, earlier in the conversation of {response_id!r}, not found")
    return [found[one] for one in (*earlier, response_id)]


def item_id(prefix: str, response_id: str, place: int) -> str:
    """The id of an item of an answer. The response can be found by it, without a list of all items.

    Args:
        prefix: Of its kind, such as `msg`.
        response_id: The response.
        place: Of the item in the answer, from 0.
    """
    return f"{prefix}_{response_id.removeprefix('resp_')}{place:04x}"


def referenced_items(context: Context, caller: Caller, item_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The items of stored answers of the project by their ids; without those that are not stored, or have expired.

    Raises:
        UnsupportedError: The responses that they are of are too large together.
    """
    found = (_ITEM_ID.fullmatch(one) for one in item_ids)
    response_ids = sorted({f"resp_{match[1]}" for match in found if match is not None})
    if context.only is not None or not response_ids:
        return {}
    num_characters = context.stored_responses.num_characters(caller.project_id, response_ids)
    if num_characters > MAX_CHAIN_CHARACTERS:
        raise UnsupportedError(
            f"references to items of responses of {num_characters:,} characters of JSON",
            expected=f"at most {MAX_CHAIN_CHARACTERS:,}",
            do="send the newest turns alone",
            code="conversation_too_large",
            param="input",
        )
    stored = context.stored_responses.several(caller.project_id, response_ids, newest_seconds=lifetime_seconds(context))
    return {item["id"]: item for one in stored.values() for item in one.document["response"]["output"]}


def _no_previous(came: str) -> UnsupportedError:
    return UnsupportedError(
        came,
        expected="stored responses of this project: not deleted, not expired, not created with store: false",
        do="send the conversation as input items",
        code="previous_response_not_found",
        param="previous_response_id",
    )


def matching_responses(
    context: Context,
    project_id: str,
    *,
    metadata: Mapping[str, str],
    model: str | None = None,
    since: float | None = None,
    until: float | None = None,
    users: Sequence[str] | None = None,
    fits: Callable[[StoredResponse], bool] = lambda _: True,
) -> Iterator[StoredResponse]:
    """The stored responses that meet all conditions, oldest first, read a few at a time.

    Args:
        context: The home.
        project_id: The project.
        metadata: Labels that all of them have.
        model: Only answers of this model.
        since: Seconds since 1970, included.
        until: Seconds since 1970, included.
        users: Only answers to these end users.
        fits: A further condition.
    """
    key = user_key(context, project_id) if users is not None else b""
    digests = None if users is None else {user_digest(key, user) for user in users}

    def is_theirs(one: StoredResponse) -> bool:
        return (digests is None or one.user_digest in digests) and fits(one)

    yield from context.stored_responses.each(
        project_id, metadata, model=model, since=since, until=until, fits=is_theirs
    )


def delete_response(context: Context, caller: Caller, response_id: str) -> None:
    """Delete a stored response.

    Raises:
        NotFoundError: The project has no such response.
    """
    with context.database.transaction():
        context.stored_responses.remove(caller.project_id, response_id)
        record(context, caller, "stored_response.deleted", response_id)


def sweep_stored_responses(context: Context) -> None:
    """Delete what has been kept for long enough."""
    context.stored_responses.sweep(lifetime_seconds(context))
