"""/datasets/forget: what holds a person's rows, and their removal from future training."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller, project_option
from luthier.core.errors import LuthierError
from luthier.features.lineage.forget import forget_row, preview_forget
from luthier.features.lineage.rows import MIN_CHARACTERS
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redacted_errors
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import Admin, HomeContext, Trainer

_ADDRESS: Final = "/datasets/forget"
router = APIRouter(prefix=_ADDRESS)

_Row = Annotated[str, Form(max_length=2_000)]


@router.get("")
def show(request: Request, context: HomeContext, caller: Trainer) -> Response:
    """The form, with what was found or done last, which only this session sees, and for a moment."""
    return _page(request, context, caller, shown_once(request).take(request))


@router.post("")
def search(request: Request, context: HomeContext, caller: Trainer, row: _Row = "") -> Response:
    """Search every version of every dataset and the files of every run; nothing is changed."""

    def work() -> Led:
        with redacted_errors(home_paths(context)):
            found = preview_forget(context, caller, row)
        return Led(shown_once(request).put(request, _ADDRESS, {"row": row.strip(), "found": found}))

    try:
        return page_work(request).answer(request, "Datasets and runs are being searched", work, back=_ADDRESS)
    except LuthierError as error:
        return _page(request, context, caller, {"row": row, "error": error})


@router.post("/remove")
def remove(request: Request, context: HomeContext, caller: Admin, row: _Row = "") -> Response:
    """Remove the rows from the newest versions, the review and the feedback, and show what still holds them."""

    def work() -> Led:
        with redacted_errors(home_paths(context)):
            done = forget_row(context, caller, row)
            names = {
                version.dataset_id: context.datasets.get(caller.project_id, version.dataset_id).name
                for version, _ in done.versions
            }
            values = {"row": row.strip(), "done": done, "names": names}
            # Searched again: what remains is shown as it is now, and not as it was expected to be.
            values["found"] = preview_forget(context, caller, row)
        return Led(shown_once(request).put(request, _ADDRESS, values))

    try:
        return page_work(request).answer(request, "The rows are being removed", work, back=_ADDRESS)
    except LuthierError as error:
        return _page(request, context, caller, {"row": row, "error": error})


def _page(request: Request, context: Context, caller: Caller, given: dict[str, Any]) -> Response:
    """given: what was searched for, with what was found or done, or why it could not be."""
    found, error = given.get("found"), given.get("error")
    run_ids = [] if found is None else [*(one.run_id for one in found.lineage.saw), *found.lineage.unknown]
    values: dict[str, Any] = {"row": "", "found": None, "done": None, "error": None, "names": {}}
    values |= {"is_shown_before": False} | given
    values |= {
        "run_names": context.run_labels.names(run_ids),
        "least": MIN_CHARACTERS,
        "project_words": project_option(caller.project_id),
    }
    return render(request, "lineage/forget.html", values, status=200 if error is None else status_of(error))
