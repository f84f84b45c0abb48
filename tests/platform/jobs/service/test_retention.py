"""Files of jobs that ended long ago go, and those that something refers to stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import select, update
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.ids import new_id
from luthier.features.batches.records import BatchRequest
from luthier.features.batches.service import start as start_batch
from luthier.platform.db.tables import jobs
from luthier.platform.files.service import add_file
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job, JobKind, JobStatus
from luthier.platform.jobs.retention import sweep_job_files
from luthier.testing.records import make_plan, make_record

DAYS = 30
PARTS = ("files/rows.jsonl", "attempt-0001/log.txt", "answers.jsonl", "spent_usd")


def add(
    context: Context, kind: JobKind, status: JobStatus = "succeeded", *, days: float = DAYS + 1, **given: Any
) -> Job:
    """A job that ended some days ago, with files in its folder."""
    job = Job(**{"job_id": new_id("job"), "kind": kind, "document": {}, "run_id": "", **given})
    context.jobs.submit(job)
    lay_out(context, job)
    end(context, job.job_id, status, days)
    return job


def lay_out(context: Context, job: Job) -> None:
    for part in PARTS:
        file = context.settings.jobs_folder / job.job_id / part
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")


def end(context: Context, job_id: str, status: JobStatus, days: float) -> None:
    with context.database.write() as connection:
        ended_at = context.database.clock(connection) - days * 86_400
        values = {"status": status, "finished_at": None if status in ("queued", "paused") else ended_at}
        connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(values))


def left(context: Context, job: Job) -> set[str]:
    folder = context.settings.jobs_folder / job.job_id
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_home_without_jobs_has_nothing_to_sweep(context: Context) -> None:
    assert sweep_job_files(context) == 0


@pytest.mark.parametrize("kind", ["evaluation", "export", "synthesis", "import", "tracking", "train", "batch"])
def test_the_folder_of_a_job_that_ended_long_ago_goes_and_that_of_a_younger_one_stays(
    context: Context, kind: JobKind
) -> None:
    old, young = add(context, kind), add(context, kind, days=DAYS - 1)
    cancelled = add(context, kind, "cancelled")
    assert sweep_job_files(context) == 2
    for job in (old, cancelled):
        assert not (context.settings.jobs_folder / job.job_id).exists()
        assert context.jobs.get(job.job_id).job_id == job.job_id, "its record stays"
    assert left(context, young) == set(PARTS)
    assert sweep_job_files(context) == 0


def test_a_job_that_may_go_on_by_itself_keeps_its_files_however_old_it_is(context: Context) -> None:
    found = [add(context, "synthesis", status, days=400) for status in ("queued", "paused", "running")]
    assert sweep_job_files(context) == 0
    for job in nonempty(found):
        assert left(context, job) == set(PARTS)


def test_the_files_of_a_run_stay_with_it_and_those_of_workflows_for_ever(context: Context) -> None:
    run_id = new_id("run")
    context.runs.create(make_record(run_id, status="succeeded"), make_plan())
    trained, failed = add(context, "train", run_id=run_id), add(context, "train", "failed", run_id=new_id("run"))
    workflow = add(context, "workflow", days=400)
    assert sweep_job_files(context) == 1
    assert left(context, trained) == left(context, workflow) == set(PARTS)
    assert left(context, failed) == set(), "no run was made"
    context.runs.delete(run_id)
    assert sweep_job_files(context) == 1
    assert left(context, trained) == set()


def test_a_batch_that_has_not_ended_keeps_the_answers_that_no_other_place_has(context: Context, tmp_path: Path) -> None:
    rows = tmp_path / "requests.jsonl"
    rows.write_text("{}\n")
    stored = add_file(context, "default", rows, filename="requests.jsonl", purpose="batch")
    request = BatchRequest(input_file_id=stored.file_id, endpoint="/v1/chat/completions", completion_window="24h")
    view = start_batch(context, Caller(), request)
    lay_out(context, view.job)
    end(context, view.job.job_id, "failed", DAYS + 1)
    assert sweep_job_files(context) == 0
    assert left(context, view.job) == set(PARTS)
    context.batches.change(view.batch.batch_id, {"status": "failed"}, time_of="failed_at")
    assert sweep_job_files(context) == 1


def test_a_failed_job_that_counts_towards_a_budget_remembers_what_it_has_spent(context: Context) -> None:
    failed, evaluated = add(context, "synthesis", "failed"), add(context, "evaluation", "failed")
    assert sweep_job_files(context) == 2
    assert left(context, failed) == {"spent_usd"}
    assert left(context, evaluated) == set()
    assert sweep_job_files(context) == 0


def test_the_number_of_days_is_set_by_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_JOB_FILES_DAYS", "2")
    with Context.open(tmp_path / "home") as context:
        gone, there = add(context, "export", days=2.5), add(context, "export", days=1.5)
        assert sweep_job_files(context) == 1
        assert (left(context, gone), left(context, there)) == (set(), set(PARTS))


def test_folders_of_no_job_and_locks_of_workers_stay(context: Context) -> None:
    folder = context.settings.jobs_folder
    (folder / "of-a-person").mkdir(parents=True)
    (folder / "of-a-person" / "notes").write_text("kept")
    (folder / "worker-w.lock").write_text("")
    job = add(context, "evaluation")
    assert sweep_job_files(context) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["of-a-person", "worker-w.lock"]
    with context.database.read() as connection:
        assert connection.execute(select(jobs.c.status).where(jobs.c.job_id == job.job_id)).scalar() == "succeeded"


def test_many_folders_are_looked_at_in_parts(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.platform.jobs.retention._AT_ONCE", 2)
    for _ in range(5):
        add(context, "export")
    assert sweep_job_files(context) == 5


def test_every_kind_says_whether_its_files_go() -> None:
    from luthier.platform.jobs.kinds import KINDS

    assert [kind for kind in get_args(JobKind) if not KINDS[kind].removes_files] == ["workflow"]
