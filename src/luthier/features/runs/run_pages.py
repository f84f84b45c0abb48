"""/runs/RUN_ID: one run, while it waits, trains and when it has ended; its report; pause, resume and cancel."""

from __future__ import annotations

from typing import Final, Literal

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from luthier.features.runs import control as run_control
from luthier.features.runs import views as project_runs
from luthier.features.runs.curves import FIRST_POINTS, layout_of, run_charts
from luthier.features.runs.series import RunSeries
from luthier.features.runs.state import standing
from luthier.features.runs.view import changing, whole_page
from luthier.platform.ui.render import is_fragment_request, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter()

REPORT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""A report is one file, made to be sent around: style in it, and no script."""


@router.get("/runs/{run_id}")
def show(
    request: Request,
    context: HomeContext,
    caller: Reader,
    run_id: str,
    part: Literal["", "now", "charts"] = "",
) -> Response:
    """The page of a run; for HTMX a part of it, as it is now."""
    found = standing(context, caller, run_id)
    series: RunSeries = request.app.state.run_series
    plan = None if found.record is None else context.runs.plan(run_id)
    if part == "now" and is_fragment_request(request):
        values = changing(context, caller, request.app.state.judged, found, plan)
        return render(request, "runs/now.html", values | {"is_piece": True})
    # A bounded number of events for the first paint; scripts fetch the whole curves afterwards.
    curves = series.first_look(run_id, 0 if found.record is None else found.record.step, FIRST_POINTS)
    drawn = {
        "run": found,
        "charts": [] if plan is None else run_charts(curves, plan.objective.loss_unit),
        "layout": layout_of(curves),
    }
    if part == "charts" and is_fragment_request(request):
        return render(request, "runs/charts.html", drawn)
    return render(request, "runs/run.html", whole_page(context, caller, request.app.state.judged, found) | drawn)


@router.get("/runs/{run_id}/report")
def report(context: HomeContext, caller: Reader, run_id: str) -> Response:
    """The report that the run has written."""
    text = project_runs.report_of(context, caller.project_id, run_id)
    # The report holds text of rows and models: even if some of it were taken for HTML, no script would run.
    return HTMLResponse(text, headers={"Content-Security-Policy": REPORT_POLICY})


@router.post("/runs/{run_id}/pause")
def pause(request: Request, context: HomeContext, caller: Trainer, run_id: str) -> Response:
    """Have it stop after its step."""
    job = run_control.pause(context, caller, run_id)
    notice = "It pauses after this step, with a checkpoint." if job.status == "running" else "The run is paused."
    return redirect(request, f"/runs/{run_id}", notice)


@router.post("/runs/{run_id}/resume")
def resume(request: Request, context: HomeContext, caller: Trainer, run_id: str) -> Response:
    """Queue it again."""
    run_control.resume(context, caller, run_id)
    return redirect(request, f"/runs/{run_id}", "The run is queued again; it goes on from its last checkpoint.")


@router.post("/runs/{run_id}/cancel")
def cancel(request: Request, context: HomeContext, caller: Trainer, run_id: str) -> Response:
    """End it for good."""
    job = run_control.cancel(context, caller, run_id)
    notice = "It ends after this step." if job.status == "running" else "The run is cancelled."
    return redirect(request, f"/runs/{run_id}", notice)
