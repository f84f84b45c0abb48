"""Webhooks: where a project gets messages about ended jobs and changed models, and those not delivered yet."""

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
    """An address that gets messages about events, without the secret that they are signed with.

    Attributes:
        webhook_id: Its id.
        project_id: The project whose events it gets.
        url: Where messages go.
        event_types: The events that it gets.
        created_at: Seconds since 1970 by the database's clock.
    """

    webhook_id: str
    project_id: str
    url: str
    event_types: tuple[EventType, ...]
    created_at: float = 0.0


class Delivery(FrozenModel):
    """One message to one webhook. Times are seconds since 1970 by the database's clock.

    Attributes:
        message_id: The same at each attempt; receivers recognise repetitions by it.
        webhook_id: The webhook.
        body: The JSON that is sent, byte for byte the same at each attempt, since it is signed.
        status: Whether it still waits, or how it ended.
        num_attempts: The attempts until now, and the fencing token of the current one.
        next_at: When it is tried next, or when the one who tries it now counts as gone.
        last_answer: How the last attempt went; None before the first.
        created_at: When it was made.
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
    """A delivery that one sender has taken.

    Attributes:
        delivery: The message.
        url: Where it goes.
        secret: What it is signed with, `whsec_...`.
        age_seconds: Seconds since it was made.
    """

    delivery: Delivery
    url: str
    secret: str
    age_seconds: float
