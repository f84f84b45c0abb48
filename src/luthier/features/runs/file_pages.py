"""Addresses of a run's files: weights as ZIP, metrics as CSV, recipe as YAML, report, and the end of its log."""

from __future__ import annotations

import json
import re
from html import escape
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from luthier.core.errors import NotFoundError
from luthier.features.runs import run_files, views
from luthier.features.runs.state import standing
from luthier.platform.auth.public_address import link_root
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer, root_of

router = APIRouter()

_PAGE_BESIDE: Final = re.compile(r'href="((?:safety|suite-[a-z0-9_-]+)\.html)"')
"""A link of a report to the page of a suite or of the safety check, which is beside it."""


@router.get("/runs/{run_id}/weights.zip")
def weights(context: HomeContext, caller: Trainer, run_id: str) -> Response:
    """The trained weights with their settings; the download is logged."""
    made = run_files.weights_of(context, caller, run_id)
    return StreamingResponse(made.blocks, media_type="application/zip", headers=_attachment(made.name))


@router.get("/runs/{run_id}/metrics.csv")
def metrics(context: HomeContext, caller: Reader, run_id: str) -> Response:
    """Every value of every step."""
    lines = run_files.metrics_csv(context, caller, run_id)
    return StreamingResponse(lines, media_type="text/csv", headers=_attachment(f"{run_id}-metrics.csv"))


@router.get("/runs/{run_id}/recipe.yaml")
def recipe(context: HomeContext, caller: Reader, run_id: str) -> Response:
    """The recipe, with names in the place of paths of this machine."""
    if standing(context, caller, run_id).record is None:
        raise NotFoundError(
            f"run {run_id} has no plan yet", expected="a run that has started", do="wait until it has started"
        )
    text = run_files.copies_of(context, context.runs.plan(run_id)).recipe
    return Response(text, media_type="application/yaml", headers=_attachment(f"{run_id}.yaml"))


@router.get("/runs/{run_id}/report.html")
def report_page(request: Request, context: HomeContext, caller: Reader, run_id: str) -> Response:
    """The report as one file, with its charts in it; its links lead to this server from wherever it is opened."""
    text = views.report_of(context, caller.project_id, run_id)
    root = link_root(context, caller.project_id, root_of(request))
    text = _PAGE_BESIDE.sub(lambda link: f'href="{escape(root)}/runs/{run_id}/{link[1]}"', text)
    return Response(text, media_type="text/html", headers=_attachment(f"{run_id}-report.html"))


@router.get("/runs/{run_id}/report.json")
def report_document(context: HomeContext, caller: Reader, run_id: str) -> Response:
    """The report for programs: the run, its plan, its events and its evaluation."""
    document = views.report_document_of(context, caller.project_id, run_id)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    return Response(f"{text}\n", media_type="application/json", headers=_attachment(f"{run_id}-report.json"))


@router.get("/runs/{run_id}/log")
def log(request: Request, context: HomeContext, caller: Reader, run_id: str) -> Response:
    """The end of its logs, as a part of its page."""
    found = standing(context, caller, run_id)
    plan = None if found.record is None else context.runs.plan(run_id)
    return render(request, "runs/log.html", {"run": found, "logs": run_files.logs_of(context, found, plan)})


def _attachment(name: str) -> dict[str, str]:
    # Ids and names of our own folders: nothing in them needs quoting.
    return {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
