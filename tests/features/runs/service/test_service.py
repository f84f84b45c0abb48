"""Runs seen from outside."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.fixtures.open_files import keep_open_files

from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.events import RunEnded, RunStarted, WarningRaised
from luthier.core.ids import sha256_file
from luthier.core.system.files import file_lock
from luthier.features.runs import service as runs
from luthier.platform.files.artifacts import link_artifact
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import RUN_ID, make_evaluation, make_plan, make_record, make_result, make_step

OTHER = "run-20261125-093000-bbbbbb"


@pytest.fixture
def run(context: Context) -> str:
    context.runs.create(make_record(status="succeeded", result=make_result()), make_plan())
    folder = context.settings.run_folder(RUN_ID)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "weights").write_text("w")
    return RUN_ID


def lock_of(context: Context, run_id: str) -> Path:
    return context.settings.run_folder(run_id) / "lock"


def test_a_run_is_active_while_its_lock_is_held(context: Context) -> None:
    context.runs.create(make_record(status="running"), make_plan())
    with file_lock(lock_of(context, RUN_ID), what="it", timeout_seconds=1):
        (view,) = runs.list_runs(context)
        assert (view.is_active, view.was_killed) == (True, False)
    (view,) = runs.list_runs(context)
    assert (view.is_active, view.was_killed) == (False, True)
    assert view.as_json()["run_id"] == RUN_ID


def test_a_run_that_ended_was_not_killed(context: Context, run: str) -> None:
    assert not runs.view_run(context, run).was_killed


def test_show_tells_all_short_of_samples(context: Context, run: str) -> None:
    for event in (make_step(1), WarningRaised(step=1, code="slow", message="no bfloat16"), make_step(2)):
        context.runs.append(run, event)
    context.evaluations.save(make_evaluation(run_id=run))
    details = runs.show_run(context, run)
    document = details.as_json()
    assert details.last_step == make_step(2)
    assert document["warnings"] == ["no bfloat16"]
    assert document["result"]["train_loss"] == 1.0625
    assert document["plan_values"][0]["name"] == "training.learning_rate"
    assert document["evaluation"]["systems"][0]["metrics"]["exact_match"]["value"] == 0.5
    assert "samples" not in document["evaluation"]["systems"][0]


def test_show_names_the_nearest(context: Context, run: str) -> None:
    with pytest.raises(NotFoundError, match=f"nearest: {RUN_ID}"):
        runs.show_run(context, "run-20261125-093000-aaaaab")


def test_compare_shows_what_differs(context: Context, run: str) -> None:
    context.runs.create(
        make_record(OTHER, status="succeeded", result=make_result(train_loss=0.5)), make_plan(learning_rate=1e-3)
    )
    context.evaluations.save(make_evaluation("eval-1", run_id=run))
    context.evaluations.save(make_evaluation("eval-2", run_id=OTHER, value=0.7))
    comparison = runs.compare_runs(context, [run, OTHER])
    assert list(comparison.plan) == [{"name": "training.learning_rate", "values": [2e-4, 1e-3]}]
    assert {"name": "train_loss", "values": [1.0625, 0.5]} in comparison.results
    assert [v["value"] for row in comparison.metrics if row["name"] == "tuned: exact_match" for v in row["values"]] == [
        0.5,
        0.7,
    ]
    assert comparison.caveats == ()


def test_compare_says_why_figures_may_not_be_comparable(context: Context, run: str) -> None:
    context.runs.create(make_record(OTHER), make_plan(train_sha256="5" * 64, model_sha256="6" * 64))
    caveats = " ".join(runs.compare_runs(context, [run, OTHER]).caveats)
    assert "2 of 2 runs were not evaluated" in caveats
    assert "base models differ" in caveats
    assert "training files differ" in caveats
    context.evaluations.save(make_evaluation("eval-1", run_id=run))
    context.evaluations.save(make_evaluation("eval-2", run_id=OTHER, held_out_sha256="7" * 64))
    assert "different held-out files" in " ".join(runs.compare_runs(context, [run, OTHER]).caveats)


def test_compare_keeps_a_place_for_what_a_run_has_not(context: Context, run: str) -> None:
    context.runs.create(make_record(OTHER), make_plan())
    rows = {row["name"]: row["values"] for row in runs.compare_runs(context, [run, OTHER]).results}
    assert rows["status"] == ["succeeded", "planned"]
    assert rows["train_loss"] == [1.0625, None]


@pytest.mark.parametrize("ids", [[], [RUN_ID], [RUN_ID, RUN_ID]])
def test_compare_needs_two_runs(context: Context, run: str, ids: list[str]) -> None:
    with pytest.raises(RequestError, match="runs to compare"):
        runs.compare_runs(context, ids)


def test_watch_gives_every_event_once_until_the_lock_is_free(context: Context) -> None:
    context.runs.create(make_record(status="running"), make_plan())
    events = [RunStarted(from_step=0, num_steps=3), make_step(1), make_step(2), make_step(3)]
    end = RunEnded(step=3, status="succeeded", reason="all steps done")
    seen, is_begun = [], threading.Event()

    def train() -> None:
        with (
            Context.open(context.home) as own,
            file_lock(lock_of(own, RUN_ID), what="it", timeout_seconds=1),
        ):
            is_begun.set()
            for event in (*events, end):
                own.runs.append(RUN_ID, event)

    trainer = threading.Thread(target=train)
    trainer.start()
    assert is_begun.wait(10)
    for event in runs.watch_run(context, RUN_ID, pause_seconds=0.01):
        seen.append(event)
    trainer.join()
    assert seen == [*events, end]


def test_watch_of_a_run_that_is_over_ends(context: Context, run: str) -> None:
    context.runs.append(run, make_step(1))
    assert list(runs.watch_run(context, run)) == [make_step(1)]
    with pytest.raises(NotFoundError):
        list(runs.watch_run(context, OTHER))


def test_remove_takes_the_folder_and_the_record(context: Context, run: str) -> None:
    assert runs.remove_run(context, run).run_id == run
    assert runs.list_runs(context) == []
    assert list(context.settings.runs_folder.iterdir()) == []
    with pytest.raises(NotFoundError):
        runs.remove_run(context, run)


def test_remove_works_without_a_folder_and_sweeps_what_a_killed_removal_left(context: Context, run: str) -> None:
    context.runs.create(make_record(OTHER), make_plan())
    left = context.settings.runs_folder / ".removed-run-20261125-093000-cccccc"
    left.mkdir()
    runs.remove_run(context, OTHER)
    assert [p.name for p in context.settings.runs_folder.iterdir()] == [run]


def test_a_removal_that_is_killed_is_finished_by_the_next_sweep(
    context: Context, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights must not stay behind without a row that names them, wherever the kill comes."""
    weights = context.settings.run_folder(run) / "checkpoints" / "weights"
    kept = context.artifacts.put_file(
        weights, "adapter", lambda c: link_artifact(c, run, "adapter", sha256_file(weights))
    )
    for owner, step in ((type(context.runs), "delete"), (shutil, "rmtree")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, killed)
            with pytest.raises(KeyboardInterrupt):
                runs.remove_run(context, run)
    runs.sweep_removed(context)
    assert (runs.list_runs(context), list(context.settings.runs_folder.iterdir())) == ([], [])
    assert not context.artifacts.has(kept.sha256)


def test_a_run_whose_job_was_resumed_is_not_removed_with_what_is_left_of_the_one_before(
    context: Context, run: str
) -> None:
    left = context.settings.runs_folder / f".removed-{run}"
    left.mkdir()
    with file_lock(lock_of(context, run), what="it", timeout_seconds=1):
        runs.sweep_removed(context)
    assert runs.view_run(context, run).record.run_id == run
    assert not left.exists()


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_run_that_is_being_trained_is_not_removed(context: Context, run: str) -> None:
    code = (
        "import sys, time; from pathlib import Path; from luthier.core.system.files import file_lock\n"
        "with file_lock(Path(sys.argv[1]), what='it', timeout_seconds=0): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, lock_of(context, run)], stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        trainer.stdout.readline()
        with pytest.raises(ConflictError, match=f"run {run} is in use by another process"):
            runs.remove_run(context, run)
        trainer.kill()
    assert runs.view_run(context, run).record.run_id == run
    assert (context.settings.run_folder(run) / "checkpoints" / "weights").exists()


@pytest.mark.parametrize("status", ["queued", "running", "paused"])
def test_a_run_whose_job_has_not_ended_is_not_removed(context: Context, run: str, status: str) -> None:
    """A worker that takes the job later would train a run of this id from its beginning."""
    job_id = context.jobs.submit(Job(job_id="job-1", kind="train", document={}, run_id=run)).job_id
    if status == "running":
        assert context.jobs.claim("here", ("train",)) is not None
    if status == "paused":
        context.jobs.ask(job_id, "pause")
    with pytest.raises(ConflictError, match=f"the job of run {run} is {status}"):
        runs.remove_run(context, run)
    assert (context.settings.run_folder(run) / "checkpoints" / "weights").is_file()
    if status != "running":
        context.jobs.ask(job_id, "cancel")
        assert runs.remove_run(context, run).run_id == run


def test_a_run_is_removed_where_its_open_lock_keeps_the_folder_in_place(
    context: Context, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_open_files(monkeypatch)
    folder = context.settings.run_folder(run)
    with file_lock(lock_of(context, run), what="it", timeout_seconds=1), pytest.raises(ConflictError):
        runs.remove_run(context, run)
    assert (folder / "checkpoints" / "weights").is_file()
    runs.remove_run(context, run)
    assert not folder.exists()
    assert list(context.settings.runs_folder.iterdir()) == []
    with pytest.raises(NotFoundError):
        context.runs.get(run)
