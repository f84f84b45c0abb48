"""What people do with the jobs that they have ordered: of every kind in the same way, and logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError
from luthier.core.ids import new_id
from luthier.core.records.export import ExportAsked, ServerExport
from luthier.features.datasets import data_jobs
from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.exports import requests as exports
from luthier.platform.home.context import Context
from luthier.platform.jobs import orders
from luthier.platform.jobs.records import Job, JobKind

ONE, OTHER = Caller(key_id="key-1", name="one"), Caller(key_id="key-2", name="other")


def submit(context: Context, kind: JobKind, document: dict[str, Any] | None = None) -> Job:
    return context.jobs.submit(Job(job_id=new_id("job"), kind=kind, document=document or {}, run_id=""))


def fail(context: Context, job: Job) -> None:
    claimed = context.jobs.claim("w", (job.lane,))
    assert claimed is not None
    assert claimed.job_id == job.job_id
    context.jobs.finish(job.job_id, claimed.attempt, "failed", {"came": "x", "expected": "y", "do": "z"})


def logged(context: Context) -> tuple[str, str, str]:
    entry = context.audit_log.newest(limit=1)[0]
    return entry.action, entry.subject, entry.actor


def test_each_change_of_a_job_is_logged_with_who_made_it(context: Context) -> None:
    job = submit(context, "synthesis")
    assert orders.pause(context, ONE, job, "synthesis.paused").status == "paused"
    assert logged(context) == ("synthesis.paused", job.job_id, "key-1 one")
    assert orders.resume(context, OTHER, job, "synthesis.continued").status == "queued"
    assert logged(context) == ("synthesis.continued", job.job_id, "key-2 other")
    assert orders.cancel(context, ONE, job, "synthesis.cancelled", subject="set-1").status == "cancelled"
    assert logged(context) == ("synthesis.cancelled", "set-1", "key-1 one")
    with pytest.raises(ConflictError):
        orders.cancel(context, OTHER, job, "synthesis.cancelled")
    assert logged(context)[2] == "key-1 one", "what did not happen is not logged"


def test_a_job_goes_on_with_the_access_of_who_resumes_it(context: Context) -> None:
    identity = ONE.model_dump(mode="json", include={"key_id", "member_id", "name"})
    order = evaluation_orders.EvaluationOrder(kind="eval", result_id="suite-1", candidate="m", label="an eval")
    document = {evaluation_orders.ASKED: order.model_dump(mode="json"), "eval_run": "evalrun_1", "caller": identity}
    job = submit(context, "evaluation", document)
    fail(context, job)
    evaluation_orders.retry(context, OTHER, job.job_id)
    after = context.jobs.get(job.job_id)
    assert after.document["caller"] == {"key_id": "key-2", "member_id": None, "name": "other"}
    assert {key: value for key, value in after.document.items() if key != "caller"} == {
        key: value for key, value in document.items() if key != "caller"
    }


def test_the_mark_of_a_job_changes_with_its_status_and_its_events(context: Context) -> None:
    job = submit(context, "export")
    marks = [orders.mark_of(job, orders.newest_event(context, job))]
    context.job_events.append(job.job_id, "progress-1-1", "Reading")
    newest = orders.newest_event(context, job)
    assert newest is not None
    assert newest.message == "Reading"
    marks.append(orders.mark_of(job, newest))
    running = context.jobs.claim("w")
    assert running is not None
    marks.append(orders.mark_of(running, newest))
    assert len(set(marks)) == 3
    assert orders.mark_of(running, newest) == marks[-1]


def queued_export(context: Context) -> tuple[ServerExport, Path]:
    """An export whose attempt was killed after it had written files, and before they were noted."""
    asked = ExportAsked(export_id=new_id("exp"), source="base", to="merged", quantise=None, file_id=None)
    job = Job(job_id=new_id("job"), kind="export", document={"export": asked.model_dump(mode="json")}, run_id="")
    made = ServerExport(export_id=asked.export_id, project_id="default", job_id=job.job_id, source="base")
    export = context.exports.add(made, job)
    folder = context.settings.exports_folder / asked.export_id
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    return export, folder


def test_nothing_is_left_of_an_export_that_is_cancelled_after_its_attempt_was_killed(context: Context) -> None:
    export, folder = queued_export(context)
    partial = folder.with_name(f".{export.export_id}.partial-1")
    partial.mkdir()
    exports.cancel(context, ONE, export.export_id)
    assert not folder.exists()
    assert not partial.exists()
    assert logged(context) == ("export.cancelled", export.export_id, "key-1 one")
    assert exports.show_export(context, ONE, export.export_id).job.status == "cancelled"


def test_questions_of_a_paused_job_that_are_kept_cancel_it_with_an_entry_in_the_log(context: Context) -> None:
    from luthier.features.datasets import questions

    order = questions.QuestionOrder(
        dataset_id="dataset-1", version=1, file_id="file-1", name="faq", column="text", teacher="t", teacher_name="t"
    )
    job = submit(context, "synthesis", {questions.SYNTHESIS: order.model_dump(mode="json")})
    context.jobs.ask(job.job_id, "pause")
    context.job_events.append(job.job_id, "progress-1-1", "Writing", data={"done": 3.0, "total": 9.0})
    data_jobs.keep_made(context, OTHER, job.job_id)
    assert context.jobs.get(job.job_id).status == "cancelled"
    actions = [entry.action for entry in context.audit_log.newest(limit=9) if entry.subject == job.job_id]
    assert actions == ["synthesis.cancelled"]


def test_what_the_operator_does_with_a_job_of_a_project_is_logged_there(context: Context) -> None:
    from luthier.features.training import jobs

    job = submit(context, "synthesis")
    assert jobs.ask(context, job.job_id, "pause").status == "paused"
    assert jobs.resume(context, job.job_id).status == "queued"
    assert jobs.ask(context, job.job_id, "cancel").status == "cancelled"
    entries = context.audit_log.newest(limit=9, project_id=job.project_id)
    assert [entry.action for entry in entries] == ["job.cancel", "job.resume", "job.pause"]
    assert {entry.subject for entry in entries} == {job.job_id}
