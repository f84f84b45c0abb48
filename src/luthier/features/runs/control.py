"""Use cases: the job behind a run of a project, of whatever kind it is: found, paused, resumed, cancelled.

A run whose job waits in the queue has no record yet: its id is known all the same. A run that a command makes has no
job: it is looked at here, and controlled where it was started.
"""

from __future__ import annotations

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.ids import is_id
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job, Wish


def job_of(context: Context, caller: Caller, run_id: str) -> Job | None:
    """The job that makes a run of the project; None for a run that a command has made.

    Raises NotFoundError where the project has neither a run nor a job with that id.
    """
    if is_id(run_id, "run"):
        if (job := context.jobs.of_run(run_id, caller.project_id)) is not None:
            return job
        if context.runs.project_of(run_id) == caller.project_id:
            return None
    raise NotFoundError(
        f"no run {run_id!r}", expected="the id of a run of this project", do="list them: GET /api/v1/runs"
    )


def pause(context: Context, caller: Caller, run_id: str) -> Job:
    """Have a run stop after its step, with a checkpoint. Raises NotFoundError; ConflictError where it cannot be."""
    return _ask(context, caller, run_id, "pause")


def cancel(context: Context, caller: Caller, run_id: str) -> Job:
    """Have a run end for good, with a checkpoint. Raises NotFoundError; ConflictError where it has ended already."""
    return _ask(context, caller, run_id, "cancel")


def resume(context: Context, caller: Caller, run_id: str) -> Job:
    """Queue a run again that was paused or has failed; it goes on from its last checkpoint.

    Raises NotFoundError; ConflictError where it is in no such state: also while it is still pausing.
    """
    job = context.jobs.resume(_controlled(context, caller, run_id).job_id)
    record(context, caller, "job.resume", job.job_id, {"run_id": run_id})
    return job


def _ask(context: Context, caller: Caller, run_id: str, wish: Wish) -> Job:
    job = context.jobs.ask(_controlled(context, caller, run_id).job_id, wish)
    record(context, caller, f"job.{wish}", job.job_id, {"run_id": run_id})
    return job


def _controlled(context: Context, caller: Caller, run_id: str) -> Job:
    job = job_of(context, caller, run_id)
    if job is None:
        raise ConflictError(
            f"run {run_id} was started by a command: no job of the server makes it",
            expected="a run that was started here or by the API",
            do=f"stop it where it runs (Ctrl-C writes a checkpoint), and go on with: luthier train --resume {run_id}",
        )
    return job
