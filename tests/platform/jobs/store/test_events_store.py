"""What is told of jobs on both databases: in order, each thing once, with the turn that it tells of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from luthier.core.errors import DataError, RequestError, RowProblem
from luthier.platform.db.database import Database
from luthier.platform.jobs.events import JobEventStore
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.store import JobStore
from luthier.platform.processes.process import OUTCOME_NAME, Outcome, write_outcome


@pytest.fixture
def events(database: Database) -> JobEventStore:
    return JobEventStore(database)


def messages(events: JobEventStore, job_id: str = "job-1") -> list[str]:
    """Oldest first."""
    return [event.message for event in events.page(job_id)[0]][::-1]


def a_job(number: int = 1, lane: str = "train") -> Job:
    values = {"job_id": f"job-{number}", "kind": "train", "document": {"n": 1}, "run_id": "run-1", "lane": lane}
    return Job.model_validate(values)


def test_each_thing_is_told_once_and_the_first_word_stays(events: JobEventStore) -> None:
    assert events.append("job-1", "step-1", "first", data={"step": 1, "valid_loss": None})
    assert not events.append("job-1", "step-1", "second")
    assert events.append("job-2", "step-1", "of another job", level="warn")
    (event,), has_more = events.page("job-1")
    assert (event.message, event.data, event.level, has_more) == (
        "first",
        {"step": 1, "valid_loss": None},
        "info",
        False,
    )
    assert event.created_at > 1.7e9
    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(lambda i: events.append("job-1", f"step-{2 + i % 3}", "again"), range(24)))
    assert sum(told) == 3


def test_pages_newest_first(events: JobEventStore) -> None:
    for number in range(5):
        events.append("job-1", str(number), str(number))
    events.append("job-2", "0", "of another job")
    page, has_more = events.page("job-1", limit=2)
    assert ([event.message for event in page], has_more) == (["4", "3"], True)
    page, has_more = events.page("job-1", after=page[-1].event_id, limit=3)
    assert ([event.message for event in page], has_more) == (["2", "1", "0"], False)
    assert events.page("job-1", after=page[-1].event_id) == ([], False)
    other = events.page("job-2")[0][0].event_id
    with pytest.raises(RequestError, match="not an event of this job"):
        events.page("job-1", after=other)


def test_every_turn_of_a_job_is_told(events: JobEventStore, queue: JobStore) -> None:
    queue.submit(a_job(lane="validate"))
    assert queue.claim("w") is None
    job = queue.claim("w:validate", ("validate",))
    assert job is not None
    job = queue.advance(job.job_id, job.attempt, {"batch_size": 4})
    assert (job.lane, job.status, job.document) == ("train", "queued", {"n": 1, "found": {"batch_size": 4}})
    assert queue.claim("w:validate", ("validate",)) is None
    job = queue.claim("w")
    assert job is not None
    queue.crash(job.job_id, job.attempt, "SIGKILL: its last words")
    queue.ask(job.job_id, "pause")
    queue.resume(job.job_id)
    job = queue.claim("w")
    assert job is not None
    queue.ask(job.job_id, "pause")
    queue.finish(job.job_id, job.attempt, "paused")
    queue.resume(job.job_id)
    job = queue.claim("w")
    assert job is not None
    queue.give_back(job.job_id, job.attempt)
    job = queue.claim("w")
    assert job is not None
    job = queue.finish(job.job_id, job.attempt, "succeeded", found={"model": "m"})
    assert job.document["found"] == {"batch_size": 4, "model": "m"}
    assert messages(events) == [
        "Created fine-tuning job: job-1",
        "Validating the files",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "The work ended unexpectedly (SIGKILL: its last words): it resumes from the last checkpoint",
        "Fine-tuning job paused",
        "Fine-tuning job resumed",
        "Fine-tuning job resumes from its last checkpoint",
        "Pausing: a checkpoint is written first",
        "Fine-tuning job paused",
        "Fine-tuning job resumed",
        "Fine-tuning job resumes from its last checkpoint",
        "The worker was stopped: the job waits for the next one",
        "Fine-tuning job resumes from its last checkpoint",
        "The job has successfully completed",
    ]


def test_failing_is_told_as_an_error_with_its_words(events: JobEventStore, queue: JobStore) -> None:
    for number, error in enumerate(({"came": "a", "message": "in words"}, {"came": "b"})):
        queue.submit(a_job(number))
        job = queue.claim("w")
        assert job is not None
        queue.finish(job.job_id, job.attempt, "failed", error)
        event = events.page(f"job-{number}", limit=1)[0][0]
        assert (event.level, event.message) == ("error", error.get("message", "b"))


def test_the_two_lanes_of_a_worker_leave_each_other_alone(queue: JobStore) -> None:
    queue.submit(a_job(1, "validate"))
    queue.submit(a_job(2))
    looks, trains = queue.claim("w:validate", ("validate",)), queue.claim("w")
    assert looks is not None
    assert trains is not None
    assert (looks.job_id, trains.job_id) == ("job-1", "job-2")
    again = queue.claim("w:validate", ("validate",))  # it died, and takes its own back
    assert again is not None
    assert (again.job_id, again.attempt) == ("job-1", 2)
    assert queue.get("job-2").attempt == 1


@pytest.mark.parametrize(("wish", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_wish_of_the_meantime_is_heard_when_the_files_are_good(queue: JobStore, wish: str, status: str) -> None:
    queue.submit(a_job(1, "validate"))
    job = queue.claim("w:validate", ("validate",))
    assert job is not None
    queue.ask("job-1", wish)  # type: ignore[arg-type]
    after = queue.advance("job-1", job.attempt)
    assert (after.status, after.lane, after.wish) == (status, "train", None)


def test_jobs_of_a_project_by_the_page(queue: JobStore) -> None:
    for number in range(5):
        queue.submit(a_job(number))
    found = queue.list(project_id="default", prefix="job-", limit=2)
    assert [job.job_id for job in found] == ["job-4", "job-3"]
    rest = queue.list(project_id="default", prefix="job-", after="job-3")
    assert [job.job_id for job in rest] == ["job-2", "job-1", "job-0"]
    assert queue.list(prefix="job_") == []


def test_notes_leave_the_steps_out(events: JobEventStore, queue: JobStore) -> None:
    queue.submit(a_job())
    for step in range(1, 30):
        events.append("job-1", f"step-{step}", f"Step {step}", data={"step": step})
    for code in ("checkpoint-10", "model", "without-effect-x"):
        events.append("job-1", code, code)
    assert [note.message for note in events.notes("job-1", limit=3)] == ["without-effect-x", "model", "checkpoint-10"]
    assert len(events.notes("job-1", limit=100)) == 4, "that it was made, too"


def test_a_reason_with_characters_that_no_database_takes_ends_its_job(
    queue: JobStore, events: JobEventStore, tmp_path: Path
) -> None:
    # JSON can write both, also in the name of a field.
    problem = RowProblem("rows.jsonl", 1, "half\ud83d", "", "is not known (fields: te\0xt, half\ud83d)")
    error = DataError("a row is wrong", expected="messages", do="correct it", problems=[problem])
    queue.submit(a_job())
    job = queue.claim("w")
    assert job is not None
    write_outcome(tmp_path, Outcome(status="failed", error=error.as_json()))
    outcome = Outcome.model_validate_json((tmp_path / OUTCOME_NAME).read_bytes())
    ended = queue.finish("job-1", job.attempt, outcome.status, outcome.error)  # type: ignore[arg-type]
    assert ended.status == "failed"
    assert ended.error is not None
    assert (ended.error["do"], ended.error["problems"][0]["field"]) == ("correct it", "half?")
    assert messages(events)[-1].endswith("is not known (fields: te\ufffdxt, half?)")
