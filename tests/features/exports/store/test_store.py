"""Exports on both databases: kept with their jobs, one project's alone, and no run's job by mistake."""

from __future__ import annotations

import pytest

from luthier.core.errors import NotFoundError
from luthier.core.records.export import ServerExport
from luthier.features.exports.store import ExportStore
from luthier.features.runs.store import RunStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.jobs.events import JobEventStore
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.store import JobStore
from luthier.testing.records import RUN_ID, make_export, make_plan, make_record


def add(database: Database, number: int = 1, project_id: str = "default") -> ServerExport:
    export = ServerExport(
        export_id=f"exp-{number}",
        project_id=project_id,
        job_id=f"job-{number}",
        source=RUN_ID if number == 1 else "tiny",
    )
    job = Job(job_id=export.job_id, kind="export", document={}, run_id="", project_id=project_id)
    return ExportStore(database).add(export, job)


def test_an_export_is_kept_with_its_job_and_what_was_made(database: Database) -> None:
    store, made = ExportStore(database), add(database)
    assert made.created_at > 0
    job = JobStore(database).get("job-1")
    assert (job.kind, job.status) == ("export", "queued")
    assert JobEventStore(database).page("job-1")[0][0].message == "Created export: job-1"
    assert store.get("default", "exp-1") == made
    store.finish("exp-1", make_export(RUN_ID))
    assert store.get("default", "exp-1").document == make_export(RUN_ID)
    add(database, 2)
    assert [one.export_id for one in store.list("default")] == ["exp-2", "exp-1"]
    assert [one.export_id for one in store.list("default", sources=[RUN_ID])] == ["exp-1"]
    store.remove("default", "exp-1")
    assert [one.export_id for one in store.list("default")] == ["exp-2"]
    with pytest.raises(NotFoundError):
        store.finish("exp-1", make_export(RUN_ID))


def test_where_the_job_cannot_be_queued_there_is_no_export_either(database: Database) -> None:
    add(database)
    export = ServerExport(export_id="exp-9", project_id="default", job_id="job-1", source="tiny")
    with pytest.raises(Exception, match="job_id"):
        ExportStore(database).add(export, Job(job_id="job-1", kind="export", document={}, run_id=""))
    assert len(ExportStore(database).list("default")) == 1


def test_another_projects_is_not_there(database: Database) -> None:
    AccessStore(database).add_project("proj-other", "other")
    store = ExportStore(database)
    add(database)
    assert store.list("proj-other") == []
    with pytest.raises(NotFoundError, match="no export"):
        store.get("proj-other", "exp-1")
    with pytest.raises(NotFoundError, match="no export"):
        store.remove("proj-other", "exp-1")


def test_exports_do_not_double_or_move_the_run_that_they_are_of(database: Database) -> None:
    AccessStore(database).add_project("proj-other", "other")
    runs = RunStore(database)
    runs.create(make_record(), make_plan())
    add(database)
    add(database, 2, "proj-other")
    assert runs.project_of(RUN_ID) == "default"
    assert [one.run_id for one in runs.of_project("default", limit=9)] == [RUN_ID]
    assert runs.of_project("proj-other", limit=9) == []
    assert runs.of_project("default", limit=9, status="succeeded") == []


def test_what_is_told_of_an_export_is_not_of_training(database: Database) -> None:
    add(database)
    jobs = JobStore(database)
    job = jobs.claim("w")
    assert job is not None
    jobs.give_back(job.job_id, job.attempt)
    job = jobs.claim("w")
    assert job is not None
    jobs.crash(job.job_id, job.attempt, "SIGKILL")
    job = jobs.claim("w")
    assert job is not None
    jobs.ask(job.job_id, "cancel")
    jobs.crash(job.job_id, job.attempt, "SIGTERM")
    told = [one.message for one in JobEventStore(database).page("job-1")[0]][::-1]
    assert told == [
        "Created export: job-1",
        "Export started",
        "The worker was stopped: the job waits for the next one",
        "Export begins again",
        "The work ended unexpectedly (SIGKILL): it begins again",
        "Export begins again",
        "Cancelling",
        "Export cancelled",
    ]
