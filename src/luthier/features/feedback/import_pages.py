"""/review/import: feedback from a file of JSON lines, as `luthier feedback import` reads it."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.core.access import Caller, project_option
from luthier.core.errors import LuthierError
from luthier.core.text.byte_sizes import size
from luthier.features.feedback.service import import_feedback
from luthier.platform.files.service import IncomingFile
from luthier.platform.home.context import Context
from luthier.platform.http.multipart import FormError
from luthier.platform.http.upload_once import take_files
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import HomeContext, Trainer

_ADDRESS: Final = "/review/import"
router = APIRouter(prefix=_ADDRESS)

_MAX_BYTES: Final = 64 << 20
"""All lines of a file are in memory together; larger files are for the command."""
_MAX_SHOWN: Final = 100


@router.get("")
def show(request: Request, caller: Trainer) -> Response:
    """The form, and the result of the file that was sent before."""
    return _page(request, caller, shown_once(request).take(request))


@router.post("")
async def take(request: Request, context: HomeContext, caller: Trainer) -> Response:
    """Import the lines of a file; those that are refused do not affect the others."""
    return await take_files(
        request,
        context,
        lambda incoming, _: _import(request, context, caller, incoming),
        lambda error, status, _: _page(request, caller, {"error": error}, status),
    )


def _import(request: Request, context: Context, caller: Caller, incoming: list[IncomingFile]) -> Response:
    if not incoming:
        raise FormError("no file was chosen", expected="one file of JSON lines", do="choose a file")
    if incoming[0].num_bytes > _MAX_BYTES:
        raise FormError(
            f"a file of {size(incoming[0].num_bytes)}",
            expected=f"at most {size(_MAX_BYTES)}",
            do="split it into smaller files",
            status=413,
        )
    incoming[0].finish()
    # The work may take longer than this request, at whose end the file is removed under its first name. Under this one
    # it is swept, too, if the process dies.
    path = incoming[0].path.with_name(f"{incoming[0].path.stem}-feedback.partial")
    incoming[0].path.rename(path)

    def work() -> Led:
        try:
            came = import_feedback(context, caller, path)
        finally:
            path.unlink(missing_ok=True)
        return Led(shown_once(request).put(request, _ADDRESS, {"came": came}))

    try:
        return page_work(request).answer(request, "The feedback is being imported", work, back=_ADDRESS)
    except LuthierError:
        path.unlink(missing_ok=True)  # the work may not have started
        raise


def _page(request: Request, caller: Caller, given: dict[str, Any], status: int = 200) -> Response:
    values = {"came": None, "error": None, "is_shown_before": False} | given
    values |= {"max_shown": _MAX_SHOWN, "max_bytes": _MAX_BYTES, "project_words": project_option(caller.project_id)}
    return render(request, "feedback/import.html", values, status=status)
