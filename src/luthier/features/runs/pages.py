"""/runs: what was trained, is trained and waits to be trained."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.features.runs.curves import MOST_COMPARED
from luthier.features.runs.entries_store import STATUSES, EntryStatus
from luthier.features.runs.list import page_of_runs
from luthier.platform.ui.navigation import Page
from luthier.platform.ui.render import is_fragment_request, render
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter()
PAGE = Page("Runs", "/runs", "read", order=30, key="r")


@router.get("/runs")
def show(
    request: Request,
    context: HomeContext,
    caller: Reader,
    status: str = "",
    text: Annotated[str, Query(max_length=200)] = "",
    before: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """The list; for HTMX its rows alone, as they are now."""
    chosen: EntryStatus | None = next((one for one in STATUSES if one == status), None)
    page = page_of_runs(context, caller, request.app.state.judged, before=before or None, status=chosen, text=text)
    asked = {name: value for name, value in (("status", chosen), ("text", text.strip())) if value}
    values = {
        "page": page,
        "statuses": STATUSES,
        "status": chosen,
        "text": text.strip(),
        "before": before,
        "is_filtered": bool(asked),
        "is_moving": any(row.standing.status not in ("succeeded", "failed", "cancelled") for row in page.rows),
        "most_compared": MOST_COMPARED,
        "older": f"/runs?{urlencode({**asked, 'before': page.older})}" if page.older else "",
        "newest": f"/runs?{urlencode(asked)}" if before else "",
        "this": f"/runs?{urlencode({**asked, **({'before': before} if before else {})})}",
    }
    return render(request, "runs/rows.html" if is_fragment_request(request) else "runs/list.html", values)
