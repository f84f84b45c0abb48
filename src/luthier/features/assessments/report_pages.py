"""/runs/RUN/report: writes the report of a run again; and the pages of suites that it links to."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.features.assessments.service import rewrite_run_report
from luthier.features.release_gates.service import newest_safety, newest_suites
from luthier.features.runs.state import standing
from luthier.ml.evaluation.report.evaluation_results import assessed_of
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redacted_errors
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter(prefix="/runs/{run_id}")


@router.post("/report")
def write_again(request: Request, context: HomeContext, caller: Trainer, run_id: str) -> Response:
    """Write the report again, with the newest suites, the safety check and the result of the gate."""
    # The report of another project's run must not be written: this finds runs of the caller's project alone.
    standing(context, caller, run_id)
    page = f"/runs/{run_id}"

    def work() -> Led:
        with redacted_errors(home_paths(context)):
            rewrite_run_report(context, run_id)
        with context.database.transaction():
            record(context, caller, "run.report_written", run_id)
        notice = "The report is written again, with the newest results."
        return Led(page, notice)

    return page_work(request).answer(request, "The report is being written", work, back=page)


@router.get("/safety.html")
def safety(context: HomeContext, caller: Reader, run_id: str) -> Response:
    """Where the report links to its safety check: the page of the newest one."""
    return _result(context, caller, run_id, "safety.html", "/evaluations/safety")


@router.get("/suite-{name}.html")
def suite(context: HomeContext, caller: Reader, run_id: str, name: str) -> Response:
    """Where the report links to a suite: the page of its newest result."""
    return _result(context, caller, run_id, f"suite-{name}.html", "/evaluations/suites")


def _result(context: Context, caller: Caller, run_id: str, page: str, address: str) -> Response:
    """The way to the result that the report has beside it as a file of this name."""
    standing(context, caller, run_id)
    safety_check = newest_safety(context, caller.project_id, run_id)
    found = assessed_of(newest_suites(context, caller.project_id, run_id), safety_check, None)
    lines = () if found is None else found.results
    # A report of an earlier version may lead to a page that several suites share: to the newest result of them.
    named = [line for line in lines if line.page == page] or [line for line in lines if line.earlier_page == page]
    if named:
        return RedirectResponse(f"{address}/{named[0].result_id}", status_code=303)
    raise NotFoundError(
        f"the run {run_id} has no result {page[:100]!r}",
        expected="a suite or a safety check that is stored",
        do="write its report again",
    )
