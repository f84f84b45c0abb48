"""The job behind a run: found in its project alone, and asked whatever its kind is."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.ids import new_id
from luthier.features.runs import state as run_control
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import add_run

OWN, OTHER = Caller(), Caller(project_id="other", key_id="key-1", name="else")


def queue(context: Context, document: dict[str, Any], project_id: str = "default") -> Job:
    job = Job(job_id=new_id("job"), kind="train", document=document, run_id=new_id("run"), project_id=project_id)
    return context.jobs.submit(job)


@pytest.mark.parametrize("document", [{"recipe": {}}, {"request": {}}, {"asked": {}}])
def test_jobs_of_every_kind_are_paused_resumed_and_cancelled(context: Context, document: dict[str, Any]) -> None:
    job = queue(context, document)
    assert run_control.job_of(context, OWN, job.run_id) == job
    assert run_control.pause(context, OWN, job.run_id).status == "paused"
    with pytest.raises(ConflictError):
        run_control.pause(context, OWN, job.run_id)
    assert run_control.resume(context, OWN, job.run_id).status == "queued"
    assert run_control.cancel(context, OWN, job.run_id).status == "cancelled"
    with pytest.raises(ConflictError):
        run_control.cancel(context, OWN, job.run_id)
    with pytest.raises(ConflictError):
        run_control.resume(context, OWN, job.run_id)
    deeds = [(entry.action, entry.subject) for entry in context.audit_log.newest(limit=3)]
    assert deeds == [(f"job.{what}", job.job_id) for what in ("cancel", "resume", "pause")]


def test_a_running_one_is_asked_to(context: Context) -> None:
    job = queue(context, {"recipe": {}})
    assert context.jobs.claim("w") is not None
    assert run_control.pause(context, OWN, job.run_id).shown_status == "pausing"
    with pytest.raises(ConflictError, match="pausing"):
        run_control.resume(context, OWN, job.run_id)


def test_those_of_other_projects_are_not_there(context: Context) -> None:
    job, run_id = queue(context, {"recipe": {}}), add_run(context, "a")
    for unknown in (job.run_id, run_id, new_id("run"), "run-1", "../etc", "\0"):
        for ask in (run_control.job_of, run_control.pause, run_control.resume, run_control.cancel):
            with pytest.raises(NotFoundError, match="no run"):
                ask(context, OTHER, unknown)


def test_a_run_of_a_command_can_only_be_looked_at(context: Context) -> None:
    run_id = add_run(context, "a", status="paused")
    assert run_control.job_of(context, OWN, run_id) is None
    for ask in (run_control.pause, run_control.resume, run_control.cancel):
        with pytest.raises(ConflictError, match="started by a command"):
            ask(context, OWN, run_id)


def test_the_newest_job_of_a_run_counts(context: Context) -> None:
    first = queue(context, {"recipe": {}})
    run_control.cancel(context, OWN, first.run_id)
    again = Job(job_id=new_id("job"), kind="train", document={"recipe": {}}, run_id=first.run_id)
    context.jobs.submit(again)
    found = run_control.job_of(context, OWN, first.run_id)
    assert found is not None
    assert found.job_id == again.job_id
