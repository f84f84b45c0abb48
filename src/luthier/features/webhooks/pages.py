"""/settings/webhooks: who is notified of events: list, add (the secret is shown once), test, remove."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError
from luthier.platform.home.context import Context
from luthier.platform.notifications import webhooks as service
from luthier.platform.notifications.store import EVENT_TYPES, EventType
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.render import Advised, Page, is_fragment_request, redirect, render
from luthier.platform.ui.settings_tabs import Id, show
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter()
PAGE = Page(
    "Webhooks", "/settings/webhooks", "read", order=50, group="settings", advised=(Advised(calls=("webhooks",)),)
)

_ADDRESS: Final = "/settings/webhooks"
_MAX_DELIVERIES: Final = 50
_WORDS: Final = {
    "fine_tuning.job.succeeded": "a training has succeeded",
    "fine_tuning.job.failed": "a training has failed",
    "fine_tuning.job.cancelled": "a training was cancelled",
    "batch.completed": "a batch is complete",
    "batch.failed": "a batch has failed",
    "batch.expired": "a batch has expired",
    "batch.cancelled": "a batch was cancelled",
    "eval.run.succeeded": "a run of an eval has succeeded",
    "eval.run.failed": "a run of an eval has failed",
    "eval.run.canceled": "a run of an eval was cancelled",
    "luthier.alert.opened": "something has changed with a deployed model",
    "luthier.alert.closed": "it is steady again",
    "luthier.inbox.assigned": "work of the inbox was assigned to a member",
    "luthier.inbox.due": "assigned work is due within a day, or overdue",
}


@router.get(_ADDRESS)
def webhooks(request: Request, context: HomeContext, caller: Reader) -> Response:
    """The webhooks of the project."""
    return _page(request, context, caller, shown_once(request).take(request))


@router.post(_ADDRESS)
def create(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    url: Annotated[str, Form(max_length=3000)] = "",
    event_types: Annotated[list[EventType], Form(max_length=len(EVENT_TYPES))] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Make a webhook, and lead to where its secret is shown once."""
    try:
        # A form without a tick sends no field at all.
        if not event_types:
            raise RequestError("no event is chosen", expected="one event or more", do="tick the events to send")
        made, secret = service.create_webhook(context, caller, url.strip(), tuple(event_types))
    except LuthierError as error:
        values = {"error": error, "url": url, "chosen": event_types}
        return _page(request, context, caller, values, status=status_of(error))
    # Kept for one view of the page, so that neither the address nor a log has the secret.
    return redirect(request, shown_once(request).put(request, _ADDRESS, {"made": made, "secret": secret}))


@router.get(f"{_ADDRESS}/{{webhook_id}}")
def webhook(request: Request, context: HomeContext, caller: Reader, webhook_id: Id) -> Response:
    """One webhook and its deliveries."""
    found = service.show_webhook(context, caller.project_id, webhook_id)
    deliveries = service.list_deliveries(context, caller.project_id, webhook_id, limit=_MAX_DELIVERIES)
    values = {
        "webhook": found,
        "words": _WORDS,
        "deliveries": [(one, json.loads(one.body)["type"]) for one in deliveries],
        "is_waiting": any(one.status == "pending" for one in deliveries),
        "most": _MAX_DELIVERIES,
    }
    # The page requests only the deliveries while one is waiting.
    if is_fragment_request(request):
        return render(request, "settings/deliveries.html", values)
    return show(request, "webhook", values)


@router.post(f"{_ADDRESS}/{{webhook_id}}/test")
def send_test(request: Request, context: HomeContext, caller: Trainer, webhook_id: Id) -> Response:
    """Send it a test event."""
    service.send_test(context, caller.project_id, webhook_id)
    return redirect(request, f"{_ADDRESS}/{webhook_id}", "A test message is on its way; its outcome appears below.")


@router.post(f"{_ADDRESS}/{{webhook_id}}/remove")
def remove(request: Request, context: HomeContext, caller: Trainer, webhook_id: Id) -> Response:
    """Delete a webhook."""
    removed = service.remove_webhook(context, caller, webhook_id)
    return redirect(request, _ADDRESS, f"The webhook to {removed.url} is removed.")


def _page(request: Request, context: Context, caller: Caller, values: dict[str, Any], *, status: int = 200) -> Response:
    common = {
        "webhooks": service.list_webhooks(context, caller.project_id),
        "words": _WORDS,
        "event_types": EVENT_TYPES,
        "chosen": EVENT_TYPES,
        "url": "",
        "made": None,
        "may_reach_private": service.may_reach_private(context),
    }
    return show(request, "webhooks", common | values, status=status)
