"""/working/NAME: work of a form that takes longer than a moment, until it leads on."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.platform.ui.errors import status_of
from luthier.platform.ui.page_work import page_work
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import Visitor

router = APIRouter(prefix="/working")


@router.get("/{name}")
def look(request: Request, _caller: Visitor, name: str) -> Response:
    """The state of the work; done work leads on."""
    work = page_work(request).find(request, name)
    if work.led is not None:
        return redirect(request, work.led.address, work.led.notice)
    status = 200 if work.error is None else status_of(work.error)
    return render(request, "working.html", {"work": work}, status=status)
