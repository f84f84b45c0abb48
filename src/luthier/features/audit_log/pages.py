"""/settings/audit-log: who did what in the project, and whether the log is unchanged."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.ml.charts.figures import plain
from luthier.platform.audit_log import service
from luthier.platform.audit_log.service import AuditEntry
from luthier.platform.home.context import Context
from luthier.platform.ui.render import Advised, Page, ago, is_fragment_request, render
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import Admin, HomeContext

router = APIRouter()
PAGE = Page(
    "Audit log",
    "/settings/audit-log",
    "admin",
    order=60,
    group="settings",
    advised=(Advised(commands=("audit-log",)),),
)

_ADDRESS: Final = "/settings/audit-log"
_A_PAGE: Final = 50
_Text = Annotated[str, Query(max_length=200)]


@router.get(_ADDRESS)
def entries(
    request: Request,
    context: HomeContext,
    caller: Admin,
    actor: _Text = "",
    action: _Text = "",
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
) -> Response:
    """The newest entries of the project, or those before a number; by actor and action where they are given."""
    return show(request, "audit_log", _values(context, caller, actor.strip(), action, before))


@router.get(f"{_ADDRESS}/verify")
def verify(request: Request, context: HomeContext, caller: Admin, expect: _Text = "") -> Response:
    """Verify the chain of the whole log, including other projects, and report only the result."""
    status, values = 200, dict[str, Any](expect=expect, error=None)
    try:
        values["verdict"] = service.verify_log(context, expect=expect.strip() or None)
    except RequestError as error:
        status, values["error"] = 422, error
    if is_fragment_request(request):
        return render(request, "settings/audit_verdict.html", values, status=status)
    return show(request, "audit_log", _values(context, caller, "", "", None) | values, status=status)


def _values(context: Context, caller: Caller, actor: str, action: str, before: int | None) -> dict[str, Any]:
    found, has_more = service.search_entries(
        context, caller.project_id, limit=_A_PAGE, before=before, actor=actor, action=action
    )
    asked = {"actor": actor, "action": action}
    older = urlencode(
        {name: value for name, value in asked.items() if value} | {"before": found[-1].number if found else 0}
    )
    return {
        "entries": [(entry, _details(entry)) for entry in found],
        "actions": service.known_actions(context, caller.project_id),
        "actor": actor,
        "action": action,
        "before": before,
        "verdict": None,
        "expect": "",
        "older": f"{_ADDRESS}?{older}" if has_more else None,
    }


def _details(entry: AuditEntry) -> dict[str, str]:
    """The details of an audit event, each value on a line; times as the pages show them."""
    document = json.loads(entry.document)
    return {name: ago(value) if _is_time(name, value) else plain(value) for name, value in document.items()}


def _is_time(name: str, value: Any) -> bool:
    # The bound distinguishes seconds since 1970 from other numbers with such a name.
    return name.endswith("_at") and isinstance(value, int | float) and 0 < value < 1e11
