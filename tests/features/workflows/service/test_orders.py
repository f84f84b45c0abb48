"""Workflows by a job: begun, continued, paused and cancelled; files and models by their names; projects kept apart."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.at_work import work
from tests.fixtures.service import chat_row, write_rows

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError, StorageFullError
from luthier.core.workflows.pipeline import Stage
from luthier.features.models.service import pull_model
from luthier.features.training import jobs
from luthier.features.workflows import orders
from luthier.features.workflows.job import carry_out
from luthier.features.workflows.model_comparison import sizes
from luthier.features.workflows.model_comparison import workflow as comparisons
from luthier.features.workflows.orders import OrderView
from luthier.ml.inference.models.templates import thinking
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.auth.service import create_key, create_project, revoke_key
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import local_base_models
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.store import JobStore
from luthier.platform.processes.process import Outcome

ME = Caller()


@pytest.fixture
def model(context: Context, tiny_model: Path) -> str:
    """A base model of this machine, by its name."""
    pull_model(context, str(tiny_model))
    return local_base_models(context)[0]


def add_rows(context: Context, tmp_path: Path, numbers: range, name: str, project_id: str = "default") -> str:
    rows = [{"prompt": f"say {n}", "completion": f"word{n % 7}"} for n in numbers]
    path = write_rows(tmp_path / f"{numbers.start}.jsonl", rows)
    return files.add_file(context, project_id, path, filename=name, purpose="fine-tune").file_id


def carried_out(context: Context, order: OrderView) -> Outcome:
    """The same attempt in this process, without the time that a worker's child takes to start."""
    quiet, owner, check = context.progress, context.owner_project_id, context.check_access
    try:
        return carry_out(context, order.job)
    finally:
        context.progress, context.owner_project_id, context.check_access = quiet, owner, check


def comparison(context: Context, tmp_path: Path, model: str, project_id: str = "default") -> dict[str, Any]:
    return {
        "models": [model],
        "data": add_rows(context, tmp_path, range(40), "client questions.jsonl", project_id),
        "held_out": add_rows(context, tmp_path, range(100, 110), "client questions.jsonl", project_id),
        "budget_hours": 1.0,
        "few_shot": 2,
        "max_new_tokens": 4,
        "probe": False,
    }


def test_a_comparison_of_another_project_is_carried_out_and_stays_there(
    context: Context, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "MOST_EPOCHS", 1.0)  # the budget would hold three passes over the rows
    project = create_project(context, "support")
    caller = Caller(project_id=project.project_id)
    values = comparison(context, tmp_path, model, project.project_id)
    order = orders.start(context, caller, "compare-models", values)
    assert order.page == f"/pipelines/jobs/{order.job.job_id}"
    assert [one.job.job_id for one in orders.list_orders(context, caller)] == [order.job.job_id]
    outcome = carried_out(context, order)
    assert (outcome.status, outcome.error) == ("succeeded", None)
    made = orders.show_order(context, caller, order.job.job_id)
    assert made.page == f"/pipelines/{order.order.workflow_id}"
    assert orders.list_orders(context, caller) == [], "it has a page of its own now"
    result = comparisons.result_of(context, caller, order.order.workflow_id)
    assert result is not None
    assert Path(result.spec.data).name == "client-questions.jsonl", "people know their file again"
    run_ids = [tuning.run_id for tuning in result.tunings]
    assert [context.runs.project_of(one) for one in run_ids] == [project.project_id]
    assert [one.run_id for one in context.runs.of_project(project.project_id, limit=9)] == run_ids
    assert list(context.runs.of_project("default", limit=9)) == []
    assert [one.run_id for one in context.run_entries.page(project.project_id, limit=9).entries] == run_ids
    assert list(context.run_entries.page("default", limit=9).entries) == []
    found = orders.order_for(context, caller, order.order.workflow_id, result.spec.model_dump(mode="json"))
    assert found is not None
    assert found.job.job_id == order.job.job_id
    assert orders.order_for(context, ME, order.order.workflow_id, result.spec.model_dump(mode="json")) is None
    # By its id, not among the newest jobs: a poll parses one document, however many there are.
    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "list", lambda *_, **__: pytest.fail("jobs are listed"))
        assert orders.order_for(context, caller, order.order.workflow_id, {}) is not None
    told = [event.message for event in context.job_events.page(order.job.job_id)[0]]
    assert any(message.startswith("Stage 1 of ") for message in told)
    assert carried_out(context, order).status == "succeeded", "an attempt that died before its last word"
    assert len(context.runs.list()) == len(run_ids)


def test_a_study_is_carried_out_within_its_budget(context: Context, tmp_path: Path, model: str) -> None:
    values = {
        "base_model": model,
        "train": add_rows(context, tmp_path, range(40), "rows.jsonl"),
        "validation": 0.2,
        "budget_hours": 1.0,
        "trials": 2,
        "space": {"parameters": {"method.rank": [2, 4]}, "only": True},
        "recipe": {
            "method": {"name": "lora", "rank": 2, "dropout": 0.0},
            "training": {"epochs": 1, "precision": "float32", "num_threads": 1, "global_batch_size": 8},
            "evaluation": {"metrics": ["perplexity"], "few_shot": 0},
        },
    }
    order = orders.start(context, ME, "tune", values)
    outcome = carried_out(context, order)
    assert (outcome.status, outcome.error) == ("succeeded", None)
    study = context.studies.get(order.order.workflow_id, "default")
    assert (study.status, study.spec.most_trials, study.spec.hours) == ("done", 2, 1.0)
    assert orders.show_order(context, ME, order.job.job_id).page == f"/studies/{study.study_id}"
    assert orders.order_for(context, ME, study.study_id, study.spec.recipe.model_dump(mode="json")) is not None


def test_a_signal_pauses_and_the_next_attempt_continues(
    context: Context, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "MOST_EPOCHS", 1.0)  # the budget would hold three passes over the rows
    order = orders.start(context, ME, "compare-models", comparison(context, tmp_path, model))
    real, calls = comparisons.resume, []

    def interrupted(*given: Any, **named: Any) -> Any:
        calls.append(given)
        pipeline = context.pipelines.get(order.order.workflow_id)
        begun = pipeline.stages[0].model_copy(update={"status": "running"})
        context.pipelines.save(pipeline.changed(begun))
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(comparisons, "resume", interrupted)
        assert carried_out(context, order).status == "paused"
    stage = context.pipelines.get(order.order.workflow_id).next_stage
    assert isinstance(stage, Stage)
    assert (stage.status, len(calls)) == ("paused", 1)
    outcome = carried_out(context, order)
    assert (outcome.status, outcome.error) == ("succeeded", None)


def test_what_cannot_be_is_refused_before_it_waits(context: Context, tmp_path: Path, model: str) -> None:
    create_project(context, "support")
    values = comparison(context, tmp_path, model)
    stranger = Caller(project_id=context.access.project("support").project_id)
    wrong: list[tuple[str, dict[str, Any], Caller, str]] = [
        ("compare-models", values, stranger, "the id of a file of this project"),
        ("compare-models", values | {"data": "/etc/passwd"}, ME, "the id of a file of this project"),
        ("compare-models", values | {"models": ["/root/model"]}, ME, "Base models"),
        ("distill", {"teacher": "http://evil.example/v1#m", "student": model, "data": values["data"]}, ME, "Teacher"),
        ("distill", {"teacher": "run-20260101-000000-aaaaaa", "data": values["data"]}, ME, "no run"),
        ("distill", {"teacher": model, "data": values["data"]}, ME, "no student"),
        (
            "distill",
            {"teacher": model, "student": model, "data": values["data"], "overrides": "data.replay.file=/etc/passwd"},
            ME,
            "of training or method",
        ),
        ("tune", {"base_model": model, "train": values["data"], "recipe": {"method": {"rank": "big"}}}, ME, "rank"),
        ("tune", {"base_model": model, "train": values["data"], "recipe": {"data": {"held_out": "/x"}}}, ME, "/x"),
        *(
            ("tune", {"base_model": model, "train": values["data"], "space": {"parameters": space}}, ME, "search space")
            for space in (
                {"data.train": ["/etc/passwd"]},
                {"base_model": ["hub:someone/model"]},
                {"objective.teacher": ["/srv/model"]},
                {"evaluation.reference_run": ["run-20260101-000000-aaaaaa"]},
                {"method.rank": {"name": "data.train", "kind": "choice", "choices": ["/etc/passwd"]}},
            )
        ),
        (
            "distill",
            {
                "teacher": model,
                "student": model,
                "data": values["data"],
                "overrides": "training={a: &a [1, 2], b: [*a, *a]}",
            },
            ME,
            "recipe value",
        ),
        ("retrain", {"model": "support"}, ME, "support"),
    ]
    for name, given, caller, words in wrong:
        with pytest.raises((RequestError, NotFoundError)) as caught:
            orders.start(context, caller, name, given)
        assert words in str(caught.value), name
    assert context.jobs.list() == []


def test_a_workflow_that_fails_names_files_as_people_know_them(context: Context, tmp_path: Path, model: str) -> None:
    path = write_rows(tmp_path / "bad.jsonl", [{"prompt": "say 1"}])
    bad = files.add_file(context, "default", path, filename="bad.jsonl", purpose="user_data").file_id
    order = orders.start(context, ME, "compare-models", comparison(context, tmp_path, model) | {"data": bad})
    outcome = carried_out(context, order)
    assert outcome.status == "failed"
    assert str(context.home) not in json.dumps(outcome.error)
    assert "bad.jsonl" in json.dumps(outcome.error)


def test_pause_resume_and_cancel_are_logged_and_of_the_project_alone(
    context: Context, tmp_path: Path, model: str
) -> None:
    order = orders.start(context, ME, "compare-models", comparison(context, tmp_path, model))
    job_id, stranger = order.job.job_id, Caller(project_id="proj-other")
    for change in (orders.show_order, orders.pause, orders.resume, orders.cancel):
        with pytest.raises(NotFoundError):
            change(context, stranger, job_id)
    assert orders.pause(context, ME, job_id).job.status == "paused"
    with pytest.raises(ConflictError):
        orders.pause(context, ME, job_id)
    assert orders.resume(context, ME, job_id).job.status == "queued"
    assert orders.cancel(context, ME, job_id).has_ended
    with pytest.raises(ConflictError):
        orders.resume(context, ME, job_id)
    actions = [entry.action for entry in newest_entries(context, limit=9) if entry.subject == job_id]
    assert actions == ["workflow.cancelled", "workflow.resumed", "workflow.paused", "workflow.started"]


def test_it_ends_with_the_access_of_who_started_it_and_goes_on_with_that_of_who_resumes_it(
    context: Context, tmp_path: Path, model: str
) -> None:
    key, _ = create_key(context, "ci", scopes=("train",))
    caller = Caller(key_id=key.key_id, name="ci", scopes=("train",))
    order = orders.start(context, caller, "compare-models", comparison(context, tmp_path, model))
    revoke_key(context, key.key_id)
    outcome = carried_out(context, order)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "the key 'ci'" in outcome.error["came"]
    assert "was revoked" in outcome.error["came"]
    with pytest.raises(NotFoundError):
        context.pipelines.get(order.order.workflow_id)
    orders.pause(context, ME, order.job.job_id)
    resumed = orders.resume(context, ME, order.job.job_id)
    assert (resumed.job.status, resumed.order) == ("queued", order.order.model_copy(update={"caller": ME}))
    assert resumed.job.document.keys() == order.job.document.keys()


def test_the_command_of_the_queue_resumes_it_with_the_access_of_a_person_at_this_machine(
    context: Context, tmp_path: Path, model: str
) -> None:
    project = create_project(context, "other").project_id
    gone = Caller(project_id=project, key_id="key-gone", name="ci", scopes=("train",))
    order = orders.start(context, gone, "compare-models", comparison(context, tmp_path, model, project))
    orders.pause(context, gone, order.job.job_id)
    resumed = jobs.resume(context, order.job.job_id)
    local = Caller(project_id=project)
    assert (resumed.status, orders.order_of(resumed)) == ("queued", order.order.model_copy(update={"caller": local}))


def test_a_worker_carries_it_out_and_a_retraining_is_found_by_its_id(deployed: str, context: Context) -> None:
    order = orders.start(context, ME, "retrain", {"model": "support", "min_rows": 5})
    work(context)
    job = orders.show_order(context, ME, order.job.job_id).job
    assert job.status == "failed"
    assert "reviewed rows" in json.dumps(job.error), "nobody has reviewed any: its first stage says so"
    asked = context.pipelines.get(order.order.workflow_id).asked
    found = orders.order_for(context, ME, order.order.workflow_id, asked)
    assert found is not None
    assert found.job.job_id == order.job.job_id
    assert found.page == f"/pipelines/{order.order.workflow_id}"


def test_a_distillation_is_found_by_its_files(
    deployed: str, context: Context, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thinking, "NEW_TOKENS", 8)  # random weights write until the limit
    path = write_rows(tmp_path / "rows.jsonl", [chat_row(n) for n in range(300, 330)])
    given = {
        "teacher": deployed,
        "student": model,
        "data": files.add_file(context, "default", path, filename="rows.jsonl", purpose="fine-tune").file_id,
        "kind": "logit",
        "overrides": "training.epochs=1\ntraining.precision=float32",
    }
    order = orders.start(context, ME, "distill", given)
    assert order.order.workflow_id == ""
    outcome = carried_out(context, order)
    assert (outcome.status, outcome.error) == ("succeeded", None)
    (pipeline,) = context.pipelines.list("default", "distill")
    assert orders.show_order(context, ME, order.job.job_id).page == f"/pipelines/{pipeline.pipeline_id}"


def test_a_full_disk_leaves_no_half_of_the_names_of_files(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = add_rows(context, tmp_path, range(3), "client questions.jsonl")
    job = Job(job_id="job-1", kind="workflow", document={}, run_id="")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError):
            orders._stem(context, job, file_id, {})
    assert [orders._stem(context, job, file_id, {}) for _ in range(2)] == ["client-questions"] * 2
