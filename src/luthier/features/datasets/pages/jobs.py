"""/datasets/jobs/{id}: a job that reads added files or writes questions: its progress, its result, the next step."""

from __future__ import annotations

import json
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, WorkError
from luthier.features.datasets import data_jobs
from luthier.features.datasets.data_jobs import DataJob
from luthier.features.datasets.imports import MAX_FILES
from luthier.features.datasets.pages.annotate import source_text
from luthier.features.datasets.pages.questions import form_values
from luthier.features.datasets.rows import rows_page
from luthier.features.datasets.service import get_version
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import shown_failure
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.job_pages import changed, is_unchanged, unchanged
from luthier.platform.ui.render import is_fragment_request, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter(prefix="/datasets/jobs")

_PREVIEWED: Final = 5
_MAX_SHOWN: Final = 600


@router.get("/{job_id}")
def show(request: Request, context: HomeContext, caller: Reader, job_id: str, after: str = "") -> Response:
    """How far it is; for HTMX its content alone. after: what was seen last; nothing is sent (204) while that holds."""
    view = data_jobs.show_job(context, caller, job_id)
    if is_unchanged(request, after, view.mark):
        return unchanged()
    return _page(request, context, caller, view)


@router.post("/{job_id}/cancel")
def cancel(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """Give it up."""
    return _done(request, context, caller, job_id, data_jobs.cancel)


@router.post("/{job_id}/pause")
def pause(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """Stop writing questions for now."""
    return _done(request, context, caller, job_id, data_jobs.pause)


@router.post("/{job_id}/continue")
def go_on(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """Continue where it stopped."""
    return _done(request, context, caller, job_id, data_jobs.go_on)


@router.post("/{job_id}/keep")
def keep(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """Make a dataset of the pairs that are there, and lead to the job that does it."""
    try:
        made = data_jobs.keep_made(context, caller, job_id)
    except ConflictError as error:
        return _page(request, context, caller, data_jobs.show_job(context, caller, job_id), error)
    return redirect(request, f"/datasets/jobs/{made.job_id}")


def _done(request: Request, context: Context, caller: Caller, job_id: str, do: Any) -> Response:
    def show_again(error: ConflictError) -> Response:
        return _page(request, context, caller, data_jobs.show_job(context, caller, job_id), error)

    return changed(request, f"/datasets/jobs/{job_id}", lambda: do(context, caller, job_id), show_again)


def _page(
    request: Request, context: Context, caller: Caller, view: DataJob, error: LuthierError | None = None
) -> Response:
    failure = shown_failure(context, view.job)
    values = {
        "view": view,
        "order": view.order,
        "found": view.found,
        "failure": failure,
        "error": error,
        "passages": None,
        "form": None,
        "max_files": MAX_FILES,
        "current": "/datasets",
    }
    if view.job.status == "succeeded" and view.is_import:
        values |= _of_passages(context, caller, view)
    template = "datasets/job_state.html" if is_fragment_request(request) else "datasets/job.html"
    return render(request, template, values, status=status_of(error) if error else 200)


def _passage(cells: dict[str, Any]) -> dict[str, Any]:
    """A passage as displayed: its beginning, and the document that it is from."""
    text = cells["text"]
    where = json.loads(cells["provenance"]["text"]) if "provenance" in cells else {}
    return {
        "text": text["text"][:_MAX_SHOWN],
        "num_more": max(0, text["num_characters"] - _MAX_SHOWN),
        "source": source_text(where),
    }


def _of_passages(context: Context, caller: Caller, view: DataJob) -> dict[str, Any]:
    """A preview of the passages that an import has made, and the form that makes questions of them."""
    made = next((one for one in view.found.get("datasets", []) if one["kind"] == "passages"), None)
    if made is None:
        return {}
    try:
        version = get_version(context, caller, made["dataset_id"], made["version"])
        page = rows_page(context, caller, version, num=_PREVIEWED)
        values: dict[str, Any] = {"passages": [_passage(row["cells"]) for row in page["rows"] if row["cells"]]}
        if caller.may("train"):
            values["form"] = form_values(context, caller, version)
    except (NotFoundError, WorkError):  # it was removed since, or is still being read: the list of what was made stays
        return {}
    return values
