"""/: what is running, the last verdicts, room on the disk, and what was spent."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.service import project_runs
from luthier.web.render import render
from luthier.web.visitor import HomeContext, Reader

router = APIRouter()


@router.get("/")
def home(request: Request, context: HomeContext, caller: Reader) -> Response:
    """The home page."""
    page = project_runs.list_runs(context, caller.project_id, after=None, limit=10)
    return render(request, "home.html", {"runs": page.runs})
