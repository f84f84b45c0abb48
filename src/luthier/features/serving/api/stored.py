"""/v1/chat/completions/{id}: chat completions that were stored (`store: true`): list, read, label and delete them."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from luthier.core.frozen_model import StrictModel
from luthier.core.records.fine_tuning import Metadata
from luthier.features.traffic import stored_completions as stored
from luthier.features.traffic.stored_completions import StoredCompletion
from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.errors import ApiError, documented
from luthier.platform.http.routes import Id, Limit, ListPage, Order, page

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])

METADATA_QUERY: Final = re.compile(r"metadata\[([^\]]*)\]")
METADATA_PARAMETER: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "description": "Only those with all of these, as metadata[key]=value",
        }
    ]
}
_SHOWN: Final = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "tools", "tool_choice", "response_format",
)  # fmt: skip
"""Parameters of the request that a stored completion shows."""


class StoredObject(BaseModel):
    """A stored chat completion: the response, its metadata and parameters of its request.

    Attributes:
        id: `chatcmpl-...`.
        object: Always `chat.completion`.
        created: Seconds since 1970.
        model: As requested.
        choices: The answers.
        usage: Tokens of prompt and answers; None if unknown.
        metadata: As of the request, or as changed since.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any] | None
    metadata: dict[str, str]


class StoredList(ListPage[StoredObject]):
    """A page of stored chat completions.

    Attributes:
        object: Always `list`.
        data: The completions.
        has_more: Whether more follow.
        first_id: Id of the first one; None for an empty page.
        last_id: Id of the last one, for `after`; None for an empty page.
    """


class StoredDeleted(BaseModel):
    """What is left of a stored chat completion."""

    id: str
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: bool = True


class StoredMessage(BaseModel):
    """A message of the request.

    Attributes:
        id: For `after`.
        role: Who speaks.
        content: The text; None if there is none, or if it was a list of parts.
        content_parts: The parts, where the content was a list of them.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    role: str
    content: str | None
    content_parts: list[dict[str, Any]] | None


class StoredMessages(ListPage[StoredMessage]):
    """A page of the messages of a request.

    Attributes:
        object: Always `list`.
        data: The messages.
        has_more: Whether more follow.
        first_id: Id of the first one; None for an empty page.
        last_id: Id of the last one, for `after`; None for an empty page.
    """

    object: Literal["list"]


class MetadataBody(StrictModel):
    """The new metadata; null removes all."""

    metadata: Metadata | None


@router.get("", response_model=StoredList, responses=documented(), openapi_extra=METADATA_PARAMETER)
def list_stored(
    request: Request,
    caller: Reader,
    context: HomeContext,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    model: str | None = None,
) -> StoredList:
    """The stored chat completions of the project, the oldest first by default."""
    found, has_more = stored.page_of_completions(
        context,
        caller,
        after=after,
        limit=limit,
        order=order,
        model=model,
        metadata=metadata_of(request),
    )
    return StoredList.of([stored_object(one) for one in found], has_more=has_more)


@router.get("/{completion_id}", response_model=StoredObject, responses=documented(404))
def retrieve(completion_id: Id, caller: Reader, context: HomeContext) -> StoredObject:
    """One stored chat completion."""
    return stored_object(context.stored_completions.get(caller.project_id, completion_id))


@router.get("/{completion_id}/messages", response_model=StoredMessages, responses=documented(404))
def list_messages(
    completion_id: Id,
    caller: Reader,
    context: HomeContext,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> dict[str, Any]:
    """The messages of its request, in order."""
    found = context.stored_completions.get(caller.project_id, completion_id)
    messages = [_message(found, number, one) for number, one in enumerate(found.document["request"]["messages"])]
    if order == "desc":
        messages.reverse()
    return page(messages, after=after, limit=limit, id_of=lambda one: one.id, show=lambda one: one)


@router.post("/{completion_id}", response_model=StoredObject, responses=documented(404))
def update(completion_id: Id, body: MetadataBody, caller: Trainer, context: HomeContext) -> StoredObject:
    """Set the metadata of a stored chat completion."""
    return stored_object(stored.update_metadata(context, caller, completion_id, body.metadata))


@router.delete("/{completion_id}", response_model=StoredDeleted, responses=documented(404))
def delete(completion_id: Id, caller: Trainer, context: HomeContext) -> StoredDeleted:
    """Delete a stored chat completion."""
    stored.delete_completion(context, caller, completion_id)
    return StoredDeleted(id=completion_id)


def metadata_of(request: Request) -> dict[str, str]:
    """The conditions `metadata[key]=value` of a query. Raises ApiError for another form."""
    if "metadata" in request.query_params:
        given = request.query_params["metadata"]
        message = f"metadata={given[:100]!r}; expected: metadata[key]=value"
        raise ApiError(400, message, param="metadata", code="invalid_value")
    return {match[1]: value for key, value in request.query_params.items() if (match := METADATA_QUERY.fullmatch(key))}


def stored_object(one: StoredCompletion) -> StoredObject:
    """A stored chat completion as the wire has it."""
    asked = one.document["request"]
    shown = {name: asked.get(name) for name in _SHOWN}
    own = {"metadata": one.labels, "input_user": asked.get("user"), "service_tier": "default", "request_id": None}
    return StoredObject.model_validate({**shown, **own, **one.document["response"]})


def _message(one: StoredCompletion, number: int, message: dict[str, Any]) -> StoredMessage:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    text = content if parts is None else None
    return StoredMessage.model_validate(
        {**message, "id": f"{one.completion_id}-{number}", "content": text, "content_parts": parts}
    )
