"""/v1/conversations: create, read, label and delete conversations; add, list, read and delete their items."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from luthier.core.frozen_model import StrictModel
from luthier.core.records.fine_tuning import Metadata
from luthier.features.serving.api.responses.items import Item, item_documents
from luthier.features.serving.api.responses.prompt_items import (
    IncludeQuery,
    check_include,
    conversation_errors,
    resolved_items,
    with_ids,
)
from luthier.features.traffic import conversations
from luthier.features.traffic.conversation_store import Conversation
from luthier.platform.http.authentication import Asker, HomeContext, Looker
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import Id, Limit, ListPage, Order

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

_MAX_ADDED = 20


class ConversationBody(StrictModel):
    """A new conversation.

    Attributes:
        items: Its first items, at most 20; None for none.
        metadata: Labels; None for none.
    """

    items: Annotated[list[Item], Field(fail_fast=True, max_length=_MAX_ADDED)] | None = None
    metadata: Metadata | None = None


class ConversationUpdateBody(StrictModel):
    """The new metadata; null removes all."""

    metadata: Metadata | None


class ItemsBody(StrictModel):
    """Items that are added, 1 to 20."""

    items: Annotated[list[Item], Field(fail_fast=True, min_length=1, max_length=_MAX_ADDED)]


class ConversationObject(BaseModel):
    """A conversation.

    Attributes:
        id: `conv_...`.
        object: Always `conversation`.
        created_at: Seconds since 1970.
        metadata: As it was last set.
    """

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]

    @classmethod
    def of(cls, one: Conversation) -> ConversationObject:
        """A conversation as the wire has it."""
        return cls(id=one.conversation_id, created_at=int(one.created_at), metadata=one.labels)


class ConversationDeleted(BaseModel):
    """What is left of a conversation."""

    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


class ConversationItemObject(BaseModel):
    """An item: a message, a call of a function, its output, or reasoning.

    Attributes:
        id: Such as `msg_...`.
        type: Its kind.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    type: Literal["message", "function_call", "function_call_output", "reasoning"]


class ConversationItems(ListPage[ConversationItemObject]):
    """A page of the items of a conversation.

    Attributes:
        object: Always `list`.
        data: The items.
        has_more: Whether more follow.
        first_id: Id of the first item; None for an empty page.
        last_id: Id of the last item, for `after`; None for an empty page.
    """


@router.post("", response_model=ConversationObject, responses=documented())
def create(caller: Asker, context: HomeContext, body: ConversationBody | None = None) -> ConversationObject:
    """Create a conversation."""
    given = body or ConversationBody()
    items = with_ids(item_documents(resolved_items(context, caller, given.items or [], param="items")))
    own_id = f"conv_{uuid.uuid4().hex}"
    made = conversations.create_conversation(context, caller, own_id, items, given.metadata or {})
    return ConversationObject.of(made)


@router.get("/{conversation_id}", response_model=ConversationObject, responses=documented(404))
def retrieve(conversation_id: Id, caller: Looker, context: HomeContext) -> ConversationObject:
    """One conversation, without its items."""
    with conversation_errors():
        return ConversationObject.of(conversations.conversation(context, caller, conversation_id))


@router.post("/{conversation_id}", response_model=ConversationObject, responses=documented(404))
def update(
    conversation_id: Id, body: ConversationUpdateBody, caller: Asker, context: HomeContext
) -> ConversationObject:
    """Set the metadata of a conversation."""
    with conversation_errors():
        found = conversations.update_conversation(context, caller, conversation_id, body.metadata or {})
    return ConversationObject.of(found)


@router.delete("/{conversation_id}", response_model=ConversationDeleted, responses=documented(404))
def delete(conversation_id: Id, caller: Asker, context: HomeContext) -> ConversationDeleted:
    """Delete a conversation with its items; stored responses stay."""
    with conversation_errors():
        conversations.delete_conversation(context, caller, conversation_id)
    return ConversationDeleted(id=conversation_id)


@router.post("/{conversation_id}/items", response_model=ConversationItems, responses=documented(404, 409))
def create_items(
    conversation_id: Id,
    body: ItemsBody,
    caller: Asker,
    context: HomeContext,
    response: Response,
    include: IncludeQuery = None,
) -> ConversationItems:
    """Add items behind all others; refused while a response is written in the conversation."""
    check_include(include, response)
    items = with_ids(item_documents(resolved_items(context, caller, body.items, param="items")))
    with conversation_errors():
        conversations.add_items(context, caller, conversation_id, items)
    return ConversationItems.of([_shown(item) for item in items], has_more=False)


@router.get("/{conversation_id}/items", response_model=ConversationItems, responses=documented(404))
def list_items(
    conversation_id: Id,
    caller: Looker,
    context: HomeContext,
    response: Response,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "desc",
    include: IncludeQuery = None,
) -> ConversationItems:
    """The items of a conversation, the last one first by default."""
    check_include(include, response)
    with conversation_errors():
        conversations.conversation(context, caller, conversation_id)
    # One more than is shown, to know whether more follow.
    found = context.conversations.items(conversation_id, after=after, limit=limit + 1, order=order)
    shown = [_shown(one.document) for one in found[:limit]]
    return ConversationItems.of(shown, has_more=len(found) > limit)


@router.get("/{conversation_id}/items/{item_id}", response_model=ConversationItemObject, responses=documented(404))
def retrieve_item(
    conversation_id: Id,
    item_id: Id,
    caller: Looker,
    context: HomeContext,
    response: Response,
    include: IncludeQuery = None,
) -> ConversationItemObject:
    """One item of a conversation."""
    check_include(include, response)
    with conversation_errors():
        conversations.conversation(context, caller, conversation_id)
        return _shown(context.conversations.item(conversation_id, item_id).document)


@router.delete("/{conversation_id}/items/{item_id}", response_model=ConversationObject, responses=documented(404, 409))
def delete_item(conversation_id: Id, item_id: Id, caller: Asker, context: HomeContext) -> ConversationObject:
    """Delete an item of a conversation; refused while a response is written in it."""
    with conversation_errors():
        return ConversationObject.of(conversations.remove_item(context, caller, conversation_id, item_id))


def _shown(document: dict[str, Any]) -> ConversationItemObject:
    return ConversationItemObject.model_validate(document)
