"""The main job from recipe to verdict, and what happens when it is disturbed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.forked_children import SessionForkServer
from tests.fixtures.service import chat_row, write_recipe, write_rows

from luthier.core.errors import (
    ConflictError,
    DataError,
    LeakageError,
    MemoryShortError,
    NotFoundError,
    OverlongError,
    RecipeError,
    RequestError,
    StorageFullError,
)
from luthier.core.events import CheckpointSaved, RunEnded, RunStarted, StepDone, ValidationDone, WarningRaised
from luthier.core.ids import sha256_file
from luthier.core.plan import Plan
from luthier.core.run import TrainResult
from luthier.features.recipes.service import load_recipe
from luthier.features.training.recorder import recorder
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.training import checkpoint as checkpoint_module
from luthier.ml.training import step as step_module
from luthier.ml.training.checkpoint import checkpoint_path
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.testing.records import make_plan, make_record

MakeRecipe = Callable[..., Path]
PROMISED = {
    "run_id", "status", "base_model", "method", "num_steps", "num_trained_tokens", "num_trainable_parameters",
    "trainable_fraction", "tokens_per_second", "examples_per_second", "seconds_per_step", "train_loss",
    "best_validation_loss", "peak_memory_bytes", "adapter_path", "adapter_sha256", "report_path", "stopped_because",
}  # fmt: skip


UNJUDGED = {"train": "train.jsonl"}


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


@dataclass(frozen=True)
class Finished:
    """An open home with the run of a recipe: tests read it, and may start further runs in it."""

    context: Context
    recipe: Path
    outcome: TrainOutcome


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder / "work", tiny_model)
    with Context.open(folder / "home") as opened:
        yield Finished(opened, recipe, run(opened, recipe))


def test_the_whole_way(finished: Finished) -> None:
    context, outcome = finished.context, finished.outcome
    document = outcome.as_json()
    assert document.keys() >= PROMISED
    assert document["status"] == "succeeded"
    assert document["num_steps"] == 10
    adapter = Path(document["adapter_path"])
    assert document["adapter_sha256"] == sha256_file(adapter / "adapter_model.safetensors")
    assert document["num_trained_tokens"] == 2 * outcome.plan.data.train.num_trained_tokens
    assert json.loads(json.dumps(document)) == document
    page = Path(document["report_path"])
    assert "<!doctype html>" in page.read_text(encoding="utf-8").lower()
    evaluation = outcome.evaluation
    assert evaluation is not None
    names = [s.name for s in evaluation.systems if s.kind == "model"]
    assert names == ["base", "base + 2 examples", "base + 2 nearest examples", "tuned"]
    assert "nearest training row (BM25)" in [s.name for s in evaluation.systems]
    assert evaluation.num_rows == 6
    assert evaluation.verdict is not None
    assert evaluation.verdict.word == document["verdict"]["word"]
    record = context.runs.get(document["run_id"])
    assert (record.status, record.step, record.evaluation_id) == ("succeeded", 10, evaluation.evaluation_id)
    assert context.evaluations.get(evaluation.evaluation_id) == evaluation
    linked = context.artifacts.linked(document["run_id"])
    assert linked["adapter/adapter_model.safetensors"].sha256 == document["adapter_sha256"]


def test_events_tell_the_run(finished: Finished) -> None:
    events = finished.context.runs.events(finished.outcome.record.run_id)
    assert [e.step for e in events if isinstance(e, StepDone)] == list(range(1, 11))
    assert [e.step for e in events if isinstance(e, ValidationDone)] == [3, 6, 9, 10]
    assert {2, 4, 6, 8, 10} <= {e.step for e in events if isinstance(e, CheckpointSaved)}
    assert [(e.status, e.step) for e in events if isinstance(e, RunEnded)] == [("succeeded", 10)]


def test_the_same_recipe_gives_the_same_bytes(finished: Finished) -> None:
    first, second = finished.outcome.as_json(), run(finished.context, finished.recipe).as_json()
    assert first["run_id"] != second["run_id"]
    assert first["adapter_sha256"] == second["adapter_sha256"]
    assert first["plan_hash"] == second["plan_hash"]
    configs = [Path(d["adapter_path"], "adapter_config.json").read_bytes() for d in (first, second)]
    assert configs[0] == configs[1]


def test_full_tuning_leaves_a_model_of_its_own(context: Context, make_recipe: MakeRecipe) -> None:
    outcome = run(context, make_recipe(method={"name": "full"}, evaluation={"few_shot": 0, "max_new_tokens": 8}))
    document = outcome.as_json()
    folder = Path(document["adapter_path"])
    assert folder.name == "model"
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {f.name for f in folder.iterdir()}
    assert document["trainable_fraction"] == 1.0
    assert outcome.evaluation is not None
    tuned = outcome.evaluation.systems[-1]
    assert tuned.metrics["perplexity"].value < outcome.evaluation.systems[0].metrics["perplexity"].value


def test_without_held_out_rows_nothing_is_judged_and_the_report_says_so(
    context: Context, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(data=UNJUDGED, training={"max_steps": 2, "precision": "float32"})
    outcome = run(context, recipe)
    assert outcome.evaluation is None
    assert outcome.record.result is not None
    assert outcome.record.result.best_validation_loss is None
    assert outcome.record.report_path is not None
    assert "held" in Path(outcome.record.report_path).read_text(encoding="utf-8")


def test_fractions_are_taken_out_of_the_training_rows(context: Context, make_recipe: MakeRecipe) -> None:
    data = {"train": "train.jsonl", "validation": 0.1, "held_out": 0.2}
    plan = run(context, make_recipe(data=data, training={"max_steps": 2, "precision": "float32"})).plan
    assert plan.data.validation is not None
    assert plan.data.held_out is not None
    sizes = [plan.data.train.num_rows, plan.data.validation.num_rows, plan.data.held_out.num_rows]
    assert sizes == [28, 4, 8]


def test_plain_text_is_trained_and_judged_by_likelihood(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    for name, start, stop in (("train", 0, 40), ("valid", 100, 108), ("test", 200, 206)):
        rows = [{"text": f"{n} and {n + 1} are neighbours."} for n in range(start, stop)]
        write_rows(recipe.parent / f"{name}.jsonl", rows)
    outcome = train(context, load_recipe(recipe, ["evaluation="]), base_dir=recipe.parent)
    assert outcome.evaluation is not None
    assert set(outcome.evaluation.systems[0].metrics) == {"perplexity", "bits_per_byte"}


def test_held_out_rows_in_the_training_file_are_refused(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    write_rows(recipe.parent / "test.jsonl", [chat_row(n) for n in (3, 4, 200, 201)])
    with pytest.raises(LeakageError, match=r"2 of 4 held-out rows[\s\S]*test.jsonl:1[\s\S]*allow_leakage"):
        run(context, recipe)
    assert context.runs.list() == []


def test_forced_leakage_is_said_in_the_verdict(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    write_rows(recipe.parent / "test.jsonl", [chat_row(n) for n in (3, 4, 200, 201)])
    forced = load_recipe(recipe, ["data.allow_leakage=true"])
    outcome = train(context, forced, base_dir=recipe.parent)
    assert outcome.evaluation is not None
    assert outcome.evaluation.verdict is not None
    assert any("training" in caveat for caveat in outcome.evaluation.verdict.caveats)
    assert any("held-out rows are also" in warning for warning in outcome.warnings)
    codes = [e.code for e in context.runs.events(outcome.record.run_id) if isinstance(e, WarningRaised)]
    assert "leakage" in codes


def test_overlong_rows_are_an_error_by_default_and_dropped_only_when_asked(
    context: Context, make_recipe: MakeRecipe
) -> None:
    training = {"max_steps": 2, "max_length_tokens": 60, "precision": "float32"}
    recipe = make_recipe(training=training)
    rows = [chat_row(n) for n in range(10)]
    rows[4]["messages"][1]["content"] = "very " * 60 + "long"
    write_rows(recipe.parent / "train.jsonl", rows)
    with pytest.raises(OverlongError, match=r"train.jsonl:5"):
        run(context, recipe)
    outcome = train(context, load_recipe(recipe, ["training.on_overlong=drop"]), base_dir=recipe.parent)
    assert outcome.plan.data.train.dropped_ids == ("train.jsonl:5",)
    assert any("1 train rows were dropped" in warning for warning in outcome.warnings)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"base_model": "smollm3"}, NotFoundError),
        ({"data": {"train": "nowhere.jsonl"}}, NotFoundError),
        ({"method": {"name": "lora", "rank": 64}}, RecipeError),
        ({"training": {"max_length_tokens": 100_000}}, RecipeError),
    ],
)
def test_a_wrong_request_leaves_no_run_behind(
    context: Context, make_recipe: MakeRecipe, change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        run(context, make_recipe(**change))
    assert context.runs.list() == []


class SharedBySixteen:
    """Sixteen processes of which each is to have a row of every step; they never begin."""

    num_processes, flags = 16, ""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def check(self, plan: Plan) -> None:
        self.sizes.append(plan.training.global_batch_size)
        raise RequestError("sixteen processes", expected="none", do="look at the plan")

    def train(self, *_: Any) -> TrainResult:
        raise AssertionError("it was refused")


def test_a_short_run_of_many_processes_has_steps_that_they_can_share(context: Context, make_recipe: MakeRecipe) -> None:
    recipe, launcher = make_recipe(training={"epochs": 2, "num_threads": 1}), SharedBySixteen()
    with pytest.raises(RequestError, match="sixteen processes"):
        train(context, load_recipe(recipe), base_dir=recipe.parent, launcher=launcher)
    assert launcher.sizes == [16], "one process takes 8"
    assert context.runs.list() == []


def test_an_empty_file_is_refused(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    (recipe.parent / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="empty"):
        run(context, recipe)


def test_no_room_at_a_checkpoint_fails_the_run_and_a_resume_finishes_it(
    context: Context, make_recipe: MakeRecipe, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = finished.outcome.as_json()["adapter_sha256"]
    real, calls = checkpoint_module.save_file, 0

    def full_disk(tensors: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint_module, "save_file", full_disk)
    with pytest.raises(StorageFullError, match=r"resume the run"):
        run(context, make_recipe())
    record = context.runs.list()[0]
    assert record.status == "failed"
    assert "no room for the checkpoint" in (record.stopped_because or "")
    monkeypatch.setattr(checkpoint_module, "save_file", real)
    outcome = resume(context, record.run_id)
    assert outcome.as_json()["adapter_sha256"] == expected


def test_a_run_without_memory_says_how_to_go_on_and_a_resume_finishes_it(
    context: Context, make_recipe: MakeRecipe, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real failure of the allocator: the plan said yes, and others hold the memory by then."""
    expected = finished.outcome.as_json()["adapter_sha256"]
    accumulate = step_module.accumulate
    calls = 0

    def taking_more(*values: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 6:
            torch.empty(1 << 60, dtype=torch.int8)
        return accumulate(*values)

    monkeypatch.setattr(step_module, "accumulate", taking_more)
    with pytest.raises(MemoryShortError, match="what to do: end other programs and continue") as error:
        run(context, make_recipe())
    record = context.runs.list()[0]
    assert f"luthier train --resume {record.run_id}" in error.value.do
    assert "training.gradient_checkpointing=true" in error.value.do
    assert record.status == "failed"
    assert "memory ran out" in (record.stopped_because or "")
    monkeypatch.setattr(step_module, "accumulate", accumulate)
    outcome = resume(context, record.run_id)
    assert outcome.as_json()["adapter_sha256"] == expected


def test_changed_rows_cannot_be_resumed(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()

    def full_disk(tensors: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full_disk)
    with pytest.raises(StorageFullError):
        run(context, recipe)
    write_rows(recipe.parent / "train.jsonl", [chat_row(n) for n in range(41)])
    with pytest.raises(ConflictError, match="has changed since the run began"):
        resume(context, context.runs.list()[0].run_id)


def test_a_run_that_is_done_is_not_resumed(context: Context, make_recipe: MakeRecipe) -> None:
    outcome = run(context, make_recipe(data=UNJUDGED, training={"max_steps": 1, "precision": "float32"}))
    with pytest.raises(ConflictError, match="has succeeded already"):
        resume(context, outcome.record.run_id)


def test_a_run_that_is_finished_while_its_lock_is_waited_for_is_not_resumed(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.features.training import service

    recipe = make_recipe(data=UNJUDGED, training={"max_steps": 1, "precision": "float32"})
    run_id = run(context, recipe).record.run_id
    context.runs.update(run_id, status="running")
    held = service._held

    def after_another(context: Context, run_id: str) -> Any:
        context.runs.update(run_id, status="succeeded")
        return held(context, run_id)

    monkeypatch.setattr(service, "_held", after_another)
    with pytest.raises(ConflictError, match="has succeeded already"):
        resume(context, run_id)


def test_divergence_fails_the_run_with_the_last_good_checkpoint(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.core.errors import DivergedError
    from luthier.ml.training.model import TrainableModel

    real = TrainableModel.loss_sum
    calls = 0

    def poisoned(self: TrainableModel, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        total, correct = real(self, batch)
        return (total * float("inf") if calls > 2 else total), correct

    monkeypatch.setattr(TrainableModel, "loss_sum", poisoned)
    with pytest.raises(DivergedError):
        run(context, make_recipe())
    record = context.runs.list()[0]
    assert (record.status, record.step) == ("failed", 2)
    assert record.report_path is not None
    assert "failed" in Path(record.report_path).read_text(encoding="utf-8")


class Child:
    """A training process that can be killed."""

    def __init__(self, server: SessionForkServer, home: Path, what: str, name: str, held_at: int = 0) -> None:
        self.process = server.module("tests.fixtures.training_child", home, what, name, held_at)

    def finish(self) -> dict[str, Any]:
        out, errors = self.process.communicate(timeout=300)
        assert out, errors
        document: dict[str, Any] = json.loads(out)
        return document

    def wait_for_step(self, context: Context, step: int) -> str:
        """Until the newest run has done this step; returns its id."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            records = context.runs.list(limit=1)
            if records and records[0].step >= step:
                return records[0].run_id
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
        raise AssertionError(f"no step {step} in time")


SLOW = {
    "epochs": 20,
    "global_batch_size": 8,
    "learning_rate": 0.01,
    "precision": "float32",
    "num_threads": 1,
    "validate_every_steps": 7,
    "checkpoint_every_steps": 5,
    "early_stopping_patience": 0,
}


@pytest.fixture
def slow_recipe(make_recipe: MakeRecipe) -> Path:
    """A hundred steps: long enough to be caught in the middle."""
    return make_recipe(training=SLOW, evaluation={"few_shot": 0, "max_new_tokens": 4})


@pytest.mark.drill
@pytest.mark.parametrize("steps", [(1, 13, 52)])
def test_kill_9_again_and_again_gives_the_undisturbed_bytes(
    context: Context, slow_recipe: Path, fork_server: SessionForkServer, steps: tuple[int, ...]
) -> None:
    expected = run(context, slow_recipe).as_json()
    child = Child(fork_server, context.home, "train", str(slow_recipe))
    run_id = _after(context, child, expected["run_id"])
    for step in steps:
        assert child.wait_for_step(context, step) == run_id
        child.process.kill()
        child.process.communicate()
        child = Child(fork_server, context.home, "resume", run_id)
    document = child.finish()
    assert document["status"] == "succeeded"
    assert document["adapter_sha256"] == expected["adapter_sha256"]
    assert document["train_loss"] == expected["train_loss"]
    _same_story(context, run_id, expected["run_id"])


def test_sigterm_pauses_with_a_checkpoint_and_a_resume_gives_the_undisturbed_bytes(
    context: Context, make_recipe: MakeRecipe, fork_server: SessionForkServer
) -> None:
    recipe = make_recipe(training=SLOW | {"epochs": 4}, evaluation={"few_shot": 0, "max_new_tokens": 4})
    expected = run(context, recipe).as_json()
    # Of 20 steps: behind a validation and a checkpoint, and before the next ones.
    child = Child(fork_server, context.home, "train", str(recipe), held_at=8)
    run_id = _after(context, child, expected["run_id"])
    child.wait_for_step(context, 8)
    child.process.terminate()
    paused = child.finish()
    assert (paused["status"], paused["stopped_because"]) == ("paused", "SIGTERM received")
    assert child.process.returncode == 0
    assert (context.runs.get(run_id).status, context.runs.get(run_id).stop_cause) == ("paused", "interrupted")
    steps = [e.step for e in context.runs.events(run_id) if isinstance(e, CheckpointSaved)]
    assert (paused["num_steps"], steps) == (8, [5, 7, 8])
    document = Child(fork_server, context.home, "resume", run_id).finish()
    assert document["adapter_sha256"] == expected["adapter_sha256"]
    _same_story(context, run_id, expected["run_id"])


def test_two_processes_cannot_work_on_one_run(
    context: Context, slow_recipe: Path, fork_server: SessionForkServer
) -> None:
    hardware_of(context)  # else the child measures the machine first, for two seconds
    child = Child(fork_server, context.home, "train", str(slow_recipe), held_at=2)
    run_id = child.wait_for_step(context, 2)
    try:
        with pytest.raises(ConflictError, match=f"run {run_id}"):
            resume(context, run_id)
    finally:
        child.process.kill()
        child.process.communicate()


@pytest.mark.drill
def test_drill_many_kills_at_random_moments(
    context: Context, slow_recipe: Path, fork_server: SessionForkServer
) -> None:
    import random

    expected = run(context, slow_recipe).as_json()
    draw = random.Random(0)
    child = Child(fork_server, context.home, "train", str(slow_recipe))
    run_id = _after(context, child, expected["run_id"])
    for _ in range(20):
        time.sleep(draw.uniform(0.0, 9.0))
        if child.process.poll() is not None:
            break
        child.process.kill()
        child.process.communicate()
        child = Child(fork_server, context.home, "resume", run_id)
    assert child.finish()["adapter_sha256"] == expected["adapter_sha256"]
    _same_story(context, run_id, expected["run_id"])


def _after(context: Context, child: Child, before: str) -> str:
    """The id of the run that the child has begun, once it is there."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        newest = context.runs.list(limit=1)[0].run_id
        if newest != before:
            return newest
        assert child.process.poll() is None, child.process.communicate()
        time.sleep(0.02)
    raise AssertionError("the child began no run in time")


def _same_story(context: Context, run_id: str, other_id: str) -> None:
    """No step lost, none doubled, every loss the same."""

    def story(name: str) -> list[tuple[Any, ...]]:
        events = context.runs.events(name)
        steps = [("step", e.step, e.loss, e.learning_rate) for e in events if isinstance(e, StepDone)]
        return [*steps, *[("validation", e.step, e.loss) for e in events if isinstance(e, ValidationDone)]]

    assert story(run_id) == story(other_id)


def test_a_checkpoint_that_a_killed_process_did_not_tell_of_is_told_when_the_run_goes_on_from_it(
    context: Context,
) -> None:
    run = make_record()
    context.runs.create(run, make_plan())
    folder = checkpoint_path(context.settings.run_folder(run.run_id) / "checkpoints", 4)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"12345")
    for _ in range(2):
        recorder(context, run.run_id, [])(RunStarted(from_step=4, num_steps=10))
    told = [event for event in context.runs.events(run.run_id) if isinstance(event, CheckpointSaved)]
    assert [(event.step, event.path, event.num_bytes) for event in told] == [(4, str(folder), 5)]
