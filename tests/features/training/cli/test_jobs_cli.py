"""`luthier jobs` and `luthier worker`."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job, JobKind
from luthier.platform.jobs.worker import Worker


def test_an_empty_queue_says_how_to_fill_it(luthier) -> None:  # type: ignore[no-untyped-def]
    assert luthier("jobs", "list", "--json").document == []
    assert "luthier jobs submit RECIPE" in luthier("jobs", "list").out
    done = luthier("worker", "--until-idle", "--name", "w", "--json")
    assert (done.code, done.document) == (0, {"num_attempts": 0, "failed": [], "waiting": []})


def test_queued_paused_resumed_cancelled(luthier, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base_model: smollm2-135m-instruct\ndata: {train: rows.jsonl}\n")
    made = luthier("jobs", "submit", recipe, "--set", "training.epochs=2", "--json").document
    assert made["status"] == "queued"
    assert made["document"]["recipe"]["data"]["train"] == str(tmp_path / "rows.jsonl")
    assert made["document"]["recipe"]["training"] == {"epochs": 2}
    job_id = made["job_id"]
    assert luthier("jobs", "pause", job_id, "--json").document["status"] == "paused"
    assert luthier("jobs", "resume", job_id, "--json").document["status"] == "queued"
    shown = luthier("jobs", "show", job_id).out
    for words in (job_id, "queued", made["run_id"], "smollm2-135m-instruct"):
        assert words in shown
    assert job_id in luthier("jobs", "list").out
    assert luthier("jobs", "cancel", job_id, "--json").document["shown_status"] == "cancelled"
    again = luthier("jobs", "cancel", job_id)
    assert again.code == 2
    assert "is cancelled" in again.err


def test_a_workflow_and_a_job_that_writes_questions_are_paused_as_on_their_pages(luthier, home) -> None:  # type: ignore[no-untyped-def]
    kinds: tuple[JobKind, ...] = ("workflow", "synthesis", "evaluation")
    names = {"form": "tune", "workflow_id": "study-1", "name": "Notes", "teacher": "x", "candidate": "x"}
    with Context.open(home) as context:
        for kind in kinds:
            document = {kind: names | {"label": "rows", "result_id": "eval-1"}}
            context.jobs.submit(Job(job_id=f"job-{kind}", kind=kind, document=document, run_id=""))
    assert luthier("jobs", "pause", "job-workflow", "--json").document["status"] == "paused"
    assert luthier("jobs", "pause", "job-synthesis", "--json").document["status"] == "paused"
    refused = luthier("jobs", "pause", "job-evaluation")
    assert refused.code == 2
    assert "is an evaluation" in refused.err


def test_a_wrong_recipe_is_refused_before_it_is_queued(luthier, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base_model: x\ndata: {train: rows.jsonl}\nmethod: {name: lorra}\n")
    assert luthier("jobs", "submit", recipe).code == 2
    assert luthier("jobs", "list", "--json").document == []


def test_a_job_that_failed_says_why(luthier, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base_model: {tmp_path / 'nowhere'}\ndata: {{train: rows.jsonl}}\n")
    job_id = luthier("jobs", "submit", recipe, "--json").document["job_id"]
    worked = luthier("worker", "--until-idle", "--name", "w")
    assert worked.code == 1
    assert "attempts made: 1" in worked.out
    assert f"failed: {job_id}" in worked.out
    assert f"luthier jobs resume {job_id}" in worked.out
    again = luthier("worker", "--until-idle", "--name", "w", "--json")
    assert (again.code, again.document["failed"]) == (0, []), "it took none that failed"
    shown = luthier("jobs", "show", job_id).out
    assert "failed" in shown
    assert "nowhere" in shown
    assert "what to do" in shown


@pytest.mark.parametrize(("is_stopped", "code"), [(False, 1), (True, 0)])
def test_a_job_that_is_put_back_fails_the_command_unless_a_stop_was_requested(
    luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stopped: bool, code: int
) -> None:  # type: ignore[no-untyped-def]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base_model: smollm2-135m-instruct\ndata: {train: rows.jsonl}\n")
    job_id = luthier("jobs", "submit", recipe, "--json").document["job_id"]

    def full(self: Worker, job: Job, *_: object) -> None:
        self.store.give_back(job.job_id, job.attempt, rest_seconds=60.0)
        if is_stopped:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Worker, "_run", full)
    done = luthier("worker", "--until-idle", "--name", "w", "--json")
    assert (done.code, done.document) == (code, {"num_attempts": 1, "failed": [], "waiting": [job_id]})
