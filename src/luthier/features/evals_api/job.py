"""An attempt of a run: it continues behind the items that earlier attempts have stored, and ends with the report."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, StorageFullError, UnreachableError, library_words_hidden
from luthier.features.evals_api.data import Rows, rows_of
from luthier.features.evals_api.grading import GradedItem, Grading, error_of
from luthier.features.evals_api.records import Eval, EvalRun, ModelUsage, RunTotals
from luthier.features.evals_api.report import keep_report
from luthier.features.evals_api.service import CALLER
from luthier.features.serving import graders
from luthier.features.serving.api.offline import use_job_engine
from luthier.platform.auth.access_check import AccessCheck
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths
from luthier.platform.jobs.attempt import JobProgress, exit_on_sigterm, report_step
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome

NUM_AT_ONCE: Final = 16
"""Items that are answered and graded at the same time; the engine answers them together."""
_WINDOW: Final = 64
"""Items that wait in memory for one before them."""


def carry_out(context: Context, job: Job) -> Outcome:
    """Answer and grade all items that are left. What has to be corrected is an outcome, too.

    Raises:
        StorageFullError: The disk is full; the job is tried again.
        UnreachableError: A server or the database cannot be reached; the job is tried again.
    """
    run = context.evals.run_of_job(job.job_id)
    one = context.evals.get(run.project_id, run.eval_id)
    context.progress = JobProgress(context, job)
    use_job_engine(context)
    try:
        # Paths in the words of a library are hidden from network callers.
        with exit_on_sigterm(), library_words_hidden():
            rows = rows_of(context, job, one, run)
            _grade_all(context, job, one, run, rows)
            keep_report(context, one, run, rows)
    except (StorageFullError, UnreachableError):
        raise  # no fault of the run: it is tried again
    except LuthierError as error:
        document = redact_paths(error.as_json(), home_paths(context))
        message = f"{document['came']}; expected: {document['expected']}; what to do: {document['do']}"
        return Outcome(status="failed", error=document | {"code": error_of(error), "message": message})
    return Outcome(status="succeeded", found={"result_id": run.result_id})


def caller_of(job: Job) -> Caller:
    """Who started the run: models are asked with the project and the budget of that key."""
    return Caller(project_id=job.project_id, scopes=("infer",), **job.document[CALLER])


def _grade_all(context: Context, job: Job, one: Eval, run: EvalRun, rows: Rows) -> None:
    asks = bool(run.model) or any(graders.uses_model(grader) for grader in one.testing_criteria)
    totals = _begun(context, one, run, rows)
    task = context.progress.task("Grading", rows.num_rows, "items", totals.num_done)
    caller = caller_of(job)
    access = AccessCheck(context, caller, "infer")
    pool = ThreadPoolExecutor(NUM_AT_ONCE, thread_name_prefix="grading")
    window: deque[Future[GradedItem]] = deque()
    with Grading(context, caller, one, run) as grading, task:

        def keep_first() -> RunTotals:
            """Store the first item, and all behind it that are done as well."""
            done = [window.popleft().result()]
            while window and window[0].done():
                done.append(window.popleft().result())
            counted = totals
            for graded in done:
                counted = _counted(counted, graded)
            context.evals.append(run.eval_run_id, [graded.item for graded in done], counted)
            report_step(context, job, counted.num_done)
            task.advance(len(done))
            return counted

        try:
            for position, row in rows.read(totals.num_done):
                # Items that were graded before stay; those that are under way are left.
                if asks:
                    access.require()
                window.append(pool.submit(grading.item, position, row))
                if len(window) >= _WINDOW:
                    totals = keep_first()
            while window:
                totals = keep_first()
        finally:
            # After an error nothing is waited for: threads in the middle of an answer end with the engine.
            pool.shutdown(wait=not window, cancel_futures=True)


def _begun(context: Context, one: Eval, run: EvalRun, rows: Rows) -> RunTotals:
    """The counts to continue from; the first attempt sets how many items there are."""
    if run.totals.num_items == rows.num_rows:
        return run.totals
    # Either the first attempt, or one on a machine that has other rows: what was graded there does not count.
    context.evals.restart(run.eval_run_id, 0)
    zeros = (0,) * len(one.testing_criteria)
    fresh = RunTotals(num_items=rows.num_rows, passed_by_criterion=zeros, failed_by_criterion=zeros)
    context.evals.append(run.eval_run_id, [], fresh)
    return fresh


def _counted(totals: RunTotals, graded: GradedItem) -> RunTotals:
    item = graded.item
    usage = dict(totals.usage)
    for model, more in graded.usage.items():
        usage[model] = usage.get(model, ModelUsage()) + more
    passed = [result.passed for result in item.results]
    return RunTotals(
        num_items=totals.num_items,
        passed=totals.passed + (item.status == "pass"),
        failed=totals.failed + (item.status == "fail"),
        errored=totals.errored + (item.status == "error"),
        passed_by_criterion=tuple(n + won for n, won in zip(totals.passed_by_criterion, passed, strict=True)),
        failed_by_criterion=tuple(n + (not won) for n, won in zip(totals.failed_by_criterion, passed, strict=True)),
        usage=usage,
    )
