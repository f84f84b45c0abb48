"""/monitor/alerts: the alerts of a project, those that are open first."""

from __future__ import annotations

from typing import Final, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.features.monitoring import alerts
from luthier.platform.ui.render import Advised, Page, render
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter(prefix="/monitor/alerts")
PAGE = Page(
    "Alerts",
    router.prefix,
    "read",
    order=84,
    key="a",
    group="watch",
    advised=(Advised(commands=("alerts",)),),
)

_MAX_SHOWN: Final = 100


@router.get("")
def index(request: Request, context: HomeContext, caller: Reader, show: Literal["open", "all"] = "open") -> Response:
    """Alerts of all models, newest first."""
    status: Literal["open"] | None = "open" if show == "open" else None
    found = alerts.list_alerts(context, caller.project_id, status=status, limit=_MAX_SHOWN + 1)
    values = {"alerts": found[:_MAX_SHOWN], "has_more": len(found) > _MAX_SHOWN, "show": show}
    return render(request, "monitoring/alerts.html", values)
