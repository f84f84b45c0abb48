"""/pipelines/ID: a workflow with its stages, running or ended, and the pages that it wrote."""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from luthier.core.access import Caller
from luthier.core.ids import sha256_document
from luthier.features.runs.pages import REPORT_POLICY
from luthier.features.workflows import orders, views
from luthier.features.workflows.orders import OrderView
from luthier.features.workflows.resume import form_of, resume_workflow
from luthier.features.workflows.start_pages import failure_of, resumed
from luthier.features.workflows.views import WorkflowView
from luthier.platform.home.context import Context
from luthier.platform.ui.job_pages import is_unchanged, unchanged
from luthier.platform.ui.render import is_fragment_request, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer
from luthier.platform.workflows.engine import Thing

router = APIRouter(prefix="/pipelines")

_ADDRESSES: Final[dict[Thing, str]] = {
    "run": "/runs/",
    "study": "/studies/",
    "evaluation": "/evaluations/",
    "showdown": "/pipelines/",
    "dataset": "/datasets/",
    "suite": "/evaluations/suites/",
}
_SHOWN_AGAIN_SECONDS: Final = 30
_FILE_LINK: Final = re.compile(r'href="file://[^"]*?(showdowns|studies)/([^"/]+)/report\.html"')


@router.get("")
def index() -> Response:
    """The list is on the page of studies."""
    return RedirectResponse("/studies#pipelines", status_code=303)


@router.get("/{pipeline_id}")
def show(request: Request, context: HomeContext, caller: Reader, pipeline_id: str, after: str = "") -> Response:
    """One workflow; for HTMX only the changing part, which is polled while it runs.

    after: the state seen last; nothing is sent (204) while it has not changed.
    """
    view = views.without_folders(context, views.view_pipeline(context, caller, pipeline_id))
    order = orders.order_for(context, caller, pipeline_id, view.pipeline.asked)
    mark = _mark(view, order)
    if is_unchanged(request, after, mark):
        return unchanged()
    values = _values(view, mark) | {"order": order, "failure": failure_of(context, order)}
    values |= {"made_names": _made_names(context, caller, view)}
    return render(request, "workflows/now.html" if is_fragment_request(request) else "workflows/show.html", values)


@router.post("/{pipeline_id}/resume")
def resume(request: Request, context: HomeContext, caller: Trainer, pipeline_id: str) -> Response:
    """Have a worker continue a workflow that stopped and that no job carries out."""
    return resumed(request, f"/pipelines/{pipeline_id}", lambda: resume_workflow(context, caller, pipeline_id))


@router.get("/{pipeline_id}/report")
def report(context: HomeContext, caller: Reader, pipeline_id: str) -> Response:
    """The report of a workflow; links to files become links on this server."""
    return _as_page(_FILE_LINK.sub(_address_of, views.report_of(context, caller, pipeline_id)))


@router.get("/{pipeline_id}/audit.html")
def audit(context: HomeContext, caller: Reader, pipeline_id: str) -> Response:
    """The audit of the original rows; the report links to it by this name."""
    return _as_page(views.stage_page(context, caller, pipeline_id, "audit.html"))


@router.get("/{pipeline_id}/audit_repaired.html")
def audit_repaired(context: HomeContext, caller: Reader, pipeline_id: str) -> Response:
    """The audit of the repaired rows."""
    return _as_page(views.stage_page(context, caller, pipeline_id, "audit_repaired.html"))


def _as_page(text: str) -> Response:
    return HTMLResponse(text, headers={"Content-Security-Policy": REPORT_POLICY})


def _address_of(link: re.Match[str]) -> str:
    return f'href="/{"pipelines" if link[1] == "showdowns" else link[1]}/{link[2]}/report"'


def _values(view: WorkflowView, mark: str) -> dict[str, Any]:
    """The variables of the templates."""
    return {
        "view": view,
        "pipeline": view.pipeline,
        "asked": view.details,
        "addresses": _ADDRESSES,
        "things": views.THINGS,
        "mark": mark,
        "can_resume": view.part_of is None and form_of(view.pipeline.pipeline_id) is not None,
        "current": "/studies",
    }


def _made_names(context: Context, caller: Caller, view: WorkflowView) -> dict[str, str]:
    """The names of the datasets that its stages have made, by their ids; what a page shows of these is there."""
    made = {made_id for stage in view.stages for thing, made_id in stage.made if thing == "dataset"}
    return {dataset_id: context.datasets.get(caller.project_id, dataset_id).name for dataset_id in sorted(made)}


def _mark(view: WorkflowView, order: OrderView | None) -> str:
    stages = [
        [stage.status, stage.reason, list(stage.found), [list(one) for one in stage.made], stage.page]
        for stage in view.stages
    ]
    seen = [view.status, stages, int(view.seconds // _SHOWN_AGAIN_SECONDS), order and order.job.shown_status]
    return sha256_document(seen)[:16]
