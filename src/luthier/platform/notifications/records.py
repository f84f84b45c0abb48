"""Webhooks: where a project wants to be told that jobs have ended or models have changed, and what is still untold."""

from __future__ import annotations

from typing import Final, Literal, get_args

from luthier.core.frozen_model import FrozenModel

EventType = Literal[
    "fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled",
    "luthier.alert.opened", "luthier.alert.closed",
]  # fmt: skip
EVENT_TYPES: Final[tuple[EventType, ...]] = get_args(EventType)
TEST_EVENT: Final = "luthier.webhook.test"
DeliveryStatus = Literal["pending", "delivered", "failed"]


class Webhook(FrozenModel):
    """An address that is told of events, without the secret that messages to it are signed with."""

    webhook_id: str
    project_id: str
    url: str
    event_types: tuple[EventType, ...]
    created_at: float = 0.0


class Delivery(FrozenModel):
    """One message to one webhook. body: the JSON that is sent, byte for byte the same at each attempt.

    next_at: when it is tried next, or when whoever tries it now counts as gone. last_answer: how it went the last time.
    """

    message_id: str
    webhook_id: str
    body: str
    status: DeliveryStatus
    num_attempts: int
    next_at: float
    last_answer: str | None
    created_at: float


class DueDelivery(FrozenModel):
    """A delivery that one sender has taken, with what it takes to send it. age_seconds: since it was made."""

    delivery: Delivery
    url: str
    secret: str
    age_seconds: float
