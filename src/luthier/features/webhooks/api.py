"""/api/v1/webhooks: get notified when jobs end."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import Id, ListObject
from luthier.platform.notifications import webhooks
from luthier.platform.notifications.store import EVENT_TYPES, Delivery, DeliveryStatus, EventType, Webhook

router = APIRouter(prefix="/api/v1/webhooks", tags=["webhooks"])


class WebhookRequest(BaseModel):
    """The events to send, and the address."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(min_length=1, max_length=2000)]
    events: Annotated[list[EventType], Field(min_length=1, max_length=len(EVENT_TYPES))] = list(EVENT_TYPES)


class WebhookView(BaseModel):
    """A webhook as clients see it. problem: why no message can be sent to it until it is made again; mostly None."""

    id: str
    object: Literal["webhook"] = "webhook"
    url: str
    events: list[EventType]
    created_at: int
    problem: str | None = None


class NewWebhookView(WebhookView):
    """A webhook that was made just now, with its secret, which is never shown again."""

    secret: str


class DeliveryView(BaseModel):
    """One message. last_answer: how the last attempt went. next_attempt_at: None where no other will be made."""

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    event: dict[str, Any]
    status: DeliveryStatus
    num_attempts: int
    last_answer: str | None
    created_at: int
    next_attempt_at: int | None


class WebhookList(ListObject[WebhookView]):
    """All webhooks of a project, newest first."""


class DeliveryList(ListObject[DeliveryView]):
    """The newest messages to a webhook, newest first."""


class DeletedWebhook(BaseModel):
    """What is left of a webhook."""

    id: str
    object: Literal["webhook"] = "webhook"
    deleted: Literal[True] = True


@router.post("", status_code=201, summary="Create a webhook", responses=documented(409))
def create(context: HomeContext, caller: Trainer, asked: WebhookRequest) -> NewWebhookView:
    """Messages are signed with the secret that is shown here, as the Standard Webhooks specification says."""
    # The secret is in this answer alone; afterwards only the server can read it.
    made, secret = webhooks.create_webhook(context, caller, asked.url, tuple(asked.events))
    return NewWebhookView(**_view(made).model_dump(), secret=secret)


@router.get("", summary="List webhooks", responses=documented())
def list_all(context: HomeContext, caller: Reader) -> WebhookList:
    """All webhooks of the project."""
    return WebhookList(data=[_view(one) for one in webhooks.list_webhooks(context, caller.project_id)])


@router.get("/{webhook_id}", summary="Show a webhook", responses=documented(404))
def show(context: HomeContext, caller: Reader, webhook_id: Id) -> WebhookView:
    """One webhook, without its secret."""
    return _view(webhooks.show_webhook(context, caller.project_id, webhook_id))


@router.delete("/{webhook_id}", summary="Remove a webhook", responses=documented(404))
def remove(context: HomeContext, caller: Trainer, webhook_id: Id) -> DeletedWebhook:
    """Pending deliveries are dropped."""
    return DeletedWebhook(id=webhooks.remove_webhook(context, caller, webhook_id).webhook_id)


@router.get("/{webhook_id}/deliveries", summary="Deliveries of a webhook", responses=documented(404))
def deliveries(
    context: HomeContext, caller: Reader, webhook_id: Id, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> DeliveryList:
    """The newest messages; finished ones are kept for 30 days."""
    found = webhooks.list_deliveries(context, caller.project_id, webhook_id, limit=limit)
    return DeliveryList(data=[_delivery_view(one) for one in found])


@router.post("/{webhook_id}/test", status_code=202, summary="Send a test message", responses=documented(404))
def test(context: HomeContext, caller: Trainer, webhook_id: Id) -> DeliveryView:
    """Sent within seconds; its event has the type `luthier.webhook.test`."""
    return _delivery_view(webhooks.send_test(context, caller.project_id, webhook_id))


def _view(webhook: Webhook) -> WebhookView:
    return WebhookView(
        id=webhook.webhook_id,
        url=webhook.url,
        events=list(webhook.event_types),
        created_at=int(webhook.created_at),
        problem=webhook.problem,
    )


def _delivery_view(delivery: Delivery) -> DeliveryView:
    return DeliveryView(
        id=delivery.message_id,
        event=json.loads(delivery.body),
        status=delivery.status,
        num_attempts=delivery.num_attempts,
        last_answer=delivery.last_answer,
        created_at=int(delivery.created_at),
        next_attempt_at=int(delivery.next_at) if delivery.status == "pending" else None,
    )
