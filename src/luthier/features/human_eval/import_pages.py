"""/evaluations/panels/ID/import: ratings of Label Studio, as `luthier human-eval import-labelstudio` reads them."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.core.access import Caller, project_option
from luthier.core.errors import DataError, LuthierError
from luthier.core.text.byte_sizes import size
from luthier.core.text.counted import counted
from luthier.features.human_eval.files import import_label_studio
from luthier.platform.files.service import IncomingFile
from luthier.platform.home.context import Context
from luthier.platform.http.multipart import FilesForm, FormError
from luthier.platform.http.upload_once import take_files
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import HomeContext, Trainer

_PANELS: Final = "/evaluations/panels"
router = APIRouter(prefix=_PANELS)

_MAX_BYTES: Final = 64 << 20
"""All tasks of a file are in memory together; larger files are for the command."""
_MAX_PROBLEMS: Final = 50


@router.get("/{panel_id}/import")
def show(request: Request, context: HomeContext, caller: Trainer, panel_id: str) -> Response:
    """The form, with the configuration of the project in Label Studio."""
    return _page(request, context, caller, panel_id)


@router.post("/{panel_id}/import")
async def take(request: Request, context: HomeContext, caller: Trainer, panel_id: str) -> Response:
    """Import the ratings of a file, all of them or none, and lead to the panel."""
    return await take_files(
        request,
        context,
        lambda incoming, form: _import(request, context, caller, panel_id, incoming, form),
        lambda error, status, _: _page(request, context, caller, panel_id, error, status),
    )


def _import(
    request: Request,
    context: Context,
    caller: Caller,
    panel_id: str,
    incoming: list[IncomingFile],
    form: FilesForm,
) -> Response:
    if not incoming:
        raise FormError("no file was chosen", expected="an export of Label Studio, JSON", do="choose a file")
    if incoming[0].num_bytes > _MAX_BYTES:
        raise FormError(
            f"a file of {size(incoming[0].num_bytes)}",
            expected=f"at most {size(_MAX_BYTES)}",
            do="import it on the server: luthier human-eval import-labelstudio PANEL FILE",
            status=413,
        )
    incoming[0].finish()
    # Read now: the file is removed when this request ends, and the work may take longer.
    content, name = incoming[0].path.read_bytes(), form.filenames[0]
    page = f"{_PANELS}/{panel_id}"

    def work() -> Led:
        found = import_label_studio(context, caller, panel_id, content, name)
        notice = f"Imported: {counted(found.num_ratings, 'rating')} by {counted(len(found.raters), 'rater')}."
        if found.num_skipped:
            notice += f" Annotations that their raters had cancelled: {found.num_skipped:,}."
        return Led(page, notice)

    return page_work(request).answer(request, "The ratings are being imported", work, back=f"{page}/import")


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    panel_id: str,
    error: LuthierError | None = None,
    status: int = 200,
) -> Response:
    panel = context.rating_panels.get(caller.project_id, panel_id)
    # The first few are in the message.
    problems = error.problems if isinstance(error, DataError) and len(error.problems) > DataError.num_shown else ()
    values: dict[str, Any] = {"panel": panel, "error": error, "max_bytes": _MAX_BYTES}
    values |= {"problems": problems[:_MAX_PROBLEMS], "num_problems": len(problems)}
    values |= {"project_words": project_option(caller.project_id)}
    return render(request, "human_eval/import.html", values, status=status)
