"""The items that a response is written after: of earlier responses, of a conversation, and of the request itself."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Query
from fastapi.responses import Response
from pydantic import Field

from luthier.core.access import Caller
from luthier.core.conversation import Message
from luthier.core.ids import sha256_bytes
from luthier.features.serving.api.answering import WARNING_HEADER, Keep
from luthier.features.serving.api.responses.body import PromptBody, fault_of_include, include_warning
from luthier.features.serving.api.responses.items import (
    CallItem,
    CallOutputItem,
    Item,
    ItemReference,
    item_documents,
    messages_of,
    parsed_items,
)
from luthier.features.traffic.conversation_store import (
    ConversationLockedError,
    ConversationMissingError,
    ItemMissingError,
    duplicate,
)
from luthier.features.traffic.conversations import append_response, items_before
from luthier.features.traffic.stored_responses import conversation_before, referenced_items
from luthier.platform.home.context import Context
from luthier.platform.http.errors import ApiError

_PREFIXES: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_ID_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")
_MAX_ID_CHARACTERS: Final = 100
_RETRY_SECONDS: Final = 1

# The client writes lists as `include[]=a&include[]=b`.
IncludeQuery = Annotated[list[Annotated[str, Field(max_length=100)]] | None, Query(alias="include[]", max_length=8)]


@dataclass(frozen=True, slots=True)
class PreparedResponse:
    """A request with its conversation.

    Attributes:
        messages: The whole conversation.
        items: Those of the request, as they are stored.
        earlier_ids: The responses before it.
    """

    messages: tuple[Message, ...]
    items: list[dict[str, Any]]
    earlier_ids: list[str]


def prepared(context: Context, caller: Caller, body: PromptBody) -> PreparedResponse:
    """The conversation of a request, with the items before it; reads the database.

    Raises:
        ApiError: Items that do not belong together, a reference to one that is not stored, an unknown conversation, or
            both a conversation and a response before it.
        UnsupportedError: The response before it is not there, or the conversation is too large or has an item of the
            request already.
    """
    own = resolved_items(context, caller, body.input)
    if body.conversation is not None:
        return _in_conversation(context, caller, body, own)
    earlier = []
    if body.previous_response_id is not None:
        earlier = conversation_before(context, caller, body.previous_response_id)
    before = parsed_items(item for one in earlier for item in one.items)
    messages = messages_of(body.instructions, [*before, *own], len(before))
    return PreparedResponse(messages, item_documents(own), [one.response_id for one in earlier])


def _in_conversation(context: Context, caller: Caller, body: PromptBody, own: list[Item]) -> PreparedResponse:
    conversation_id = body.conversation_id
    assert conversation_id is not None
    if body.previous_response_id is not None:
        message = (
            "Mutually exclusive parameters: 'conversation' and 'previous_response_id'; expected: one of them, since "
            "each names the items before the request; what to do: leave one out"
        )
        raise ApiError(400, message, param="conversation", code="mutually_exclusive_parameters")
    with conversation_errors("conversation"):
        documents = items_before(context, caller, conversation_id)
    before = _without_orphan_outputs(parsed_items(documents))
    messages = messages_of(body.instructions, [*before, *own], len(before), before="conversation")
    items = with_ids(item_documents(own))
    known = {document["id"] for document in documents}
    if (taken := next((item["id"] for item in items if item["id"] in known), None)) is not None:
        raise duplicate(taken)
    return PreparedResponse(messages, items, [])


def _without_orphan_outputs(items: Sequence[Item]) -> list[Item]:
    """Without the outputs of calls that are not before them: the calls were deleted, and nobody could go on."""
    found: list[Item] = []
    waiting = set[str]()
    for item in items:
        if isinstance(item, CallItem):
            waiting.add(item.call_id)
        elif isinstance(item, CallOutputItem):
            if item.call_id not in waiting:
                continue
            waiting.remove(item.call_id)
        found.append(item)
    return found


def resolved_items(context: Context, caller: Caller, items: Sequence[Item], *, param: str = "input") -> list[Item]:
    """The items of a request, with those of stored answers in place of references to them.

    Args:
        context: The home.
        caller: Whose answers are looked up.
        items: Of the request.
        param: The parameter that holds them.

    Raises:
        ApiError: An item that is not stored, or one that is referred to twice.
    """
    known = referenced_items(context, caller, [item.id for item in items if isinstance(item, ItemReference)])
    found: list[Item] = []
    seen = set[str]()
    for place, item in enumerate(items):
        if not isinstance(item, ItemReference):
            found.append(item)
            continue
        place_of_id = f"{param}.{place}.id"
        # Each once: a short request could otherwise refer to a conversation of any length.
        if item.id in seen:
            message = f"Duplicate item found with id {item.id!r}; expected: each item once; what to do: leave it out"
            raise ApiError(400, message, param=place_of_id, code="invalid_value")
        if item.id not in known:
            message = (
                f"Item with id {item.id!r} not found; expected: an item of a stored answer of this project (not "
                "deleted, not expired, not created with store: false); what to do: send the item itself"
            )
            raise ApiError(404, message, param=place_of_id, code="item_not_found")
        seen.add(item.id)
        found += parsed_items([known[item.id]])
    return found


def with_ids(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items as a conversation keeps them, each with an id and a status.

    Args:
        items: As `item_documents` writes them. An id that addresses cannot have is replaced.

    Raises:
        UnsupportedError: Two of them have the same id.
    """
    found: list[dict[str, Any]] = []
    seen = set[str]()
    for item in items:
        own = item.get("id") or ""
        if not own or len(own) > _MAX_ID_CHARACTERS or not own[0].isalnum() or set(own) - _ID_CHARACTERS:
            own = f"{_PREFIXES[item['type']]}_{uuid.uuid4().hex}"
        if own in seen:
            raise duplicate(own)
        seen.add(own)
        found.append({"status": "completed", **item, "id": own})
    return found


def listed_input_items(response_id: str, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items of the request of a stored response, each with an id.

    Args:
        response_id: The response, which ids are made of.
        items: As they are stored.
    """
    found: list[dict[str, Any]] = []
    for place, item in enumerate(items):
        digest = sha256_bytes(f"{response_id}:{place}".encode())[:32]
        # An item that an answer is sent back with has its id already.
        own = {"id": f"{_PREFIXES[item['type']]}_{digest}", "status": "completed"}
        found.append({**own, **item})
    return found


def conversation_recorder(
    context: Context,
    caller: Caller,
    conversation_id: str,
    items: Sequence[Mapping[str, Any]],
    *,
    holder: str,
    keep: Keep | None,
) -> Keep:
    """What adds a response to its conversation, and stores it where `keep` does: both or neither.

    Args:
        context: The home.
        caller: Whose project it is.
        conversation_id: The conversation, which `holder` has locked.
        items: Those of the request.
        holder: The request.
        keep: Stores the response itself; None where it is not stored.
    """

    def add(response: dict[str, Any], user: str) -> None:
        with context.database.transaction():
            if keep is not None:
                keep(response, user)
            every = [*items, *response["output"]]
            append_response(context, caller, conversation_id, every, holder=holder, user=user)

    return add


@contextmanager
def conversation_errors(param: str | None = None) -> Iterator[None]:
    """Errors of conversations with the codes of OpenAI's API.

    Args:
        param: The parameter that names the conversation; None for the address.

    Raises:
        ApiError: 404 for what is not there; 409 while another request writes in the conversation.
    """
    try:
        yield
    except ConversationMissingError as error:
        raise ApiError(404, error.in_one_line, param=param, code="conversation_not_found") from error
    except ItemMissingError as error:
        raise ApiError(404, error.in_one_line, code="item_not_found") from error
    except ConversationLockedError as error:
        # Unlike other conflicts it ends by itself: clients wait and send the request again.
        headers = {"Retry-After": str(_RETRY_SECONDS)}
        raise ApiError(409, error.in_one_line, param=param, code="conversation_locked", headers=headers) from error


def check_include(include: Sequence[str] | None, response: Response) -> None:
    """Refuse what does not exist, and warn about what no answer has.

    Likelihoods are part of a response that was created with them.

    Args:
        include: Of the query.
        response: Its header gets the warning.

    Raises:
        ApiError: A value that OpenAI's API does not have.
    """
    for name in include or ():
        if (fault := fault_of_include(name)) is not None:
            raise ApiError(400, fault, param="include", code="invalid_value")
    if (warning := include_warning(include)) is not None:
        response.headers[WARNING_HEADER] = warning
