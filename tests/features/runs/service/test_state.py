"""Where a run stands, from the queue to its end, and what it can be asked meanwhile."""

from __future__ import annotations

import pytest

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.core.events import BillUpdated
from luthier.core.system.files import file_lock
from luthier.features.runs.state import left_seconds, standing
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import RUN_ID, add_run, bill_at, make_plan, make_record, make_result

OWN, OTHER = Caller(), Caller(project_id="other", key_id="key-1", name="else")


def queue(context: Context, number: int = 1, run_id: str = RUN_ID) -> Job:
    job = Job(job_id=f"job-20261125-093000-00000{number}", kind="train", document={"recipe": {}}, run_id=run_id)
    return context.jobs.submit(job)


def test_from_the_queue_to_the_end(context: Context) -> None:
    queue(context, 1, "run-20261125-093000-eeeeee")
    queue(context, 2)
    found = standing(context, OWN, RUN_ID)
    assert (found.status, found.num_ahead, found.phase, found.record) == ("queued", 1, "", None)
    assert (found.can_pause, found.can_resume, found.can_cancel, found.is_over) == (True, False, True, False)
    context.jobs.claim("w")
    job = context.jobs.claim("w2")
    assert job is not None
    assert standing(context, OWN, RUN_ID).phase == "preparing"
    context.runs.create(make_record(), make_plan())
    assert standing(context, OWN, RUN_ID).phase == "loading the model"
    context.runs.update(RUN_ID, status="running", step=4)
    assert standing(context, OWN, RUN_ID).phase == "training"
    context.runs.update(RUN_ID, step=10)
    assert standing(context, OWN, RUN_ID).phase == "evaluating and writing the report"
    context.jobs.ask(job.job_id, "pause")
    found = standing(context, OWN, RUN_ID)
    assert (found.status, found.can_pause, found.can_resume, found.can_cancel) == ("pausing", False, False, True)
    context.jobs.finish(job.job_id, job.attempt, "paused")
    found = standing(context, OWN, RUN_ID)
    assert (found.status, found.can_resume, found.is_over, found.phase) == ("paused", True, False, "")


def test_a_run_that_stopped_early_is_shown_as_evaluating_once_it_has_weights(context: Context) -> None:
    context.runs.create(make_record(status="running"), make_plan())
    queue(context)
    context.jobs.claim("w")
    bill = BillUpdated(step=2, bill=bill_at(2, 10))
    paused = make_result().model_copy(update={"status": "paused", "adapter_path": None})
    context.runs.update(RUN_ID, step=4, result=paused)
    found = standing(context, OWN, RUN_ID)
    assert (found.phase, left_seconds(found, bill) is not None) == ("training", True), "resumed after a pause"
    context.runs.update(RUN_ID, result=make_result())
    found = standing(context, OWN, RUN_ID)
    assert (found.phase, left_seconds(found, bill)) == ("evaluating and writing the report", None)


def test_a_failed_one_says_why_in_three_parts(context: Context) -> None:
    queue(context)
    job = context.jobs.claim("w")
    assert job is not None
    told = {"type": "DataError", "came": "rows.jsonl:3 is not JSON", "expected": "JSON", "do": "correct it"}
    context.jobs.finish(job.job_id, job.attempt, "failed", error=told)
    error = standing(context, OWN, RUN_ID).error
    assert error is not None
    assert (error.came, error.expected, error.do) == ("rows.jsonl:3 is not JSON", "JSON", "correct it")
    context.jobs.resume(job.job_id)
    assert standing(context, OWN, RUN_ID).error is None


def test_a_run_of_a_command_stands_as_its_process_does(context: Context) -> None:
    context.runs.create(make_record(status="running"), make_plan())
    found = standing(context, OWN, RUN_ID)
    assert (found.status, found.can_pause, found.can_cancel, found.can_resume) == ("interrupted", False, False, False)
    with file_lock(context.settings.run_folder(RUN_ID) / "lock", what="run", timeout_seconds=1.0):
        assert standing(context, OWN, RUN_ID).status == "running"
    context.runs.update(RUN_ID, status="failed", stopped_because="step 3: loss nan")
    error = standing(context, OWN, RUN_ID).error
    assert error is not None
    assert error.came == "step 3: loss nan"


def test_what_is_left_shrinks_with_each_step(context: Context) -> None:
    context.runs.create(make_record(status="running").model_copy(update={"num_steps": 100}), make_plan())
    queue(context)
    context.jobs.claim("w")
    context.runs.update(RUN_ID, step=60)
    bill = BillUpdated(step=50, bill=bill_at(50, 100))
    assert left_seconds(standing(context, OWN, RUN_ID), bill) == pytest.approx(0.5 * 40)
    assert left_seconds(standing(context, OWN, RUN_ID), None) is None


def test_those_of_other_projects_are_not_there(context: Context) -> None:
    run_id = add_run(context, "a")
    for unknown in (run_id, "run-20261125-093000-999999", "../x"):
        with pytest.raises(NotFoundError, match="no run"):
            standing(context, OTHER, unknown)
