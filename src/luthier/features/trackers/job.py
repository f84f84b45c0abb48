"""Use case: deliver the rest of a run by a job, for pages and the API; and the attempt of such a job in a worker."""

from __future__ import annotations

from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, WorkError
from luthier.core.ids import new_id
from luthier.features.trackers import service
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.jobs.attempt import exit_on_sigterm
from luthier.platform.jobs.records import OPEN, Job
from luthier.platform.processes.process import Outcome

KIND: Final = "tracking"


def start(context: Context, caller: Caller, run_id: str) -> Job:
    """Queue the delivery of what the trackers of a run do not have.

    Raises:
        NotFoundError: No such run in the project.
        ConflictError: It has no trackers, they have everything, or a delivery waits or is under way.
    """
    if context.runs.project_of(run_id) != caller.project_id:
        raise NotFoundError(f"no run {run_id!r}", expected="a run of this project", do="see the list of runs")
    states = service.states(context, run_id)
    if all(state.status == "delivered" for state in states):
        raise ConflictError(
            f"the trackers of run {run_id} are up to date" if states else f"run {run_id} has no trackers",
            expected="a tracker that lacks part of the run",
            do="choose trackers in the recipe, or see what was delivered: luthier runs show",
        )
    waiting = context.jobs.list(project_id=caller.project_id, kinds=(KIND,), status=OPEN)
    is_queued = any(_run_of(job) == run_id for job in waiting)
    if is_queued or any(state.status == "delivering" for state in states):
        raise ConflictError(
            f"run {run_id} is being delivered already",
            expected="no delivery under way",
            do="wait until it ends: the page of the run shows its progress",
        )
    # It must wait neither behind trainings nor hold up what asks models of this machine.
    job = Job(
        job_id=new_id("job"),
        kind=KIND,
        document={KIND: {"run_id": run_id}},
        run_id="",
        project_id=caller.project_id,
        lane="remote",
    )
    with context.database.transaction():
        made = context.jobs.submit(job)
        record(context, caller, "run.tracked", run_id, {"job_id": job.job_id})
    return made


def carry_out(context: Context, job: Job) -> Outcome:
    """Deliver. A tracker that still does not answer fails the job.

    Raises:
        WorkError: One of the trackers has not everything.
        LuthierError: The run is gone, or is being delivered.
    """
    with exit_on_sigterm():
        states = service.deliver(context, _run_of(job))
    if failed := [state for state in states if state.status != "delivered"]:
        raise WorkError(
            "; ".join(f"{state.name}: {state.error}" for state in failed),
            expected="trackers that answer",
            do="check address, key and network of the tracker, then deliver again",
        )
    return Outcome(status="succeeded")


def _run_of(job: Job) -> str:
    return str(job.document[KIND]["run_id"])
