"""Progress of an attempt as events of its job: of all tasks, or only of those that take long."""

from __future__ import annotations

import pytest

from luthier.platform.home.context import Context
from luthier.platform.jobs import attempt
from luthier.platform.jobs.attempt import JobProgress
from luthier.platform.jobs.records import Job


@pytest.fixture
def job(context: Context) -> Job:
    return context.jobs.submit(Job(job_id="job-000000000001", kind="train", document={}, run_id="run-000000000001"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(attempt.time, "monotonic", lambda: now[0])
    return now


def reported(context: Context, job: Job) -> list[str]:
    events, _ = context.job_events.page(job.job_id, limit=100)
    return [event.message for event in reversed(events) if event.message.startswith(("Grading", "training"))]


def test_a_task_says_its_name_and_then_how_far_it_is(context: Context, job: Job, clock: list[float]) -> None:
    with JobProgress(context, job).task("Grading answers", 64, "answers") as task:
        task.advance()
        clock[0] += 2
        task.advance()
    assert reported(context, job) == ["Grading answers", "Grading answers: 2 of 64 answers, about 1 min 02 s left"]


def test_only_long_tasks_of_a_title_are_reported_where_that_is_asked_for(
    context: Context, job: Job, clock: list[float]
) -> None:
    progress = JobProgress(context, job, only=("Grading answers",), every_seconds=15, names_tasks=False)
    for _ in range(3):  # the short steps of a run
        with progress.task("Grading answers", 64, "answers") as task:
            clock[0] += 5
            task.advance(64)
    assert reported(context, job) == []
    with progress.task("training", 100, "step") as bar, progress.task("Grading answers", 64, "answers") as task:
        for _ in range(4):
            clock[0] += 10
            task.advance(16)
            bar.advance()
    assert reported(context, job) == [
        "Grading answers: 32 of 64 answers, about 20 s left",
        "Grading answers: 64 of 64 answers",
    ]
