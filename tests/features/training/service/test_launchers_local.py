"""`luthier train --devices 2`: a kill costs nothing but time, errors are told once, a wish to stop pauses all."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tests.fixtures.service import chat_row, write_rows

from luthier.core.errors import ConflictError, RequestError, WorkError
from luthier.core.events import CheckpointSaved, Event, RunStarted, StepDone, WarningRaised
from luthier.core.plan import Plan
from luthier.core.run import TrainResult
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.launchers import here
from luthier.features.training.launchers.here import silent_hooks, train_worker
from luthier.features.training.launchers.local import MAX_RESTARTS, Answers, LocalLauncher, _Attempt
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.training.distributed import World
from luthier.platform.home.context import Context
from luthier.testing.records import make_plan, make_step
from luthier.testing.world import in_world

MakeRecipe = Callable[..., Path]


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Path:
    """Fifty steps, a checkpoint after each, nothing judged."""
    return make_recipe(
        data={"train": "train.jsonl", "validation": "valid.jsonl"},
        training={
            "epochs": 10, "global_batch_size": 8, "learning_rate": 0.01, "precision": "float32", "num_threads": 2,
            "validate_every_steps": 4, "checkpoint_every_steps": 1, "keep_checkpoints": 99,
        },
    )  # fmt: skip


class Disturbed(LocalLauncher):
    """Kills rank 1 after step 5 and, once all have begun again, wishes to stop.

    What is told lies behind what is done, by many steps on a busy machine: a kill and a wish at fixed steps could come
    at the same moment, and a run that pauses before it misses its rank 1 has nothing to begin again for.
    """

    is_killed = False

    def train(self, *arguments: Any) -> TrainResult:
        context, run_id, prepared, meter, emit, lock = arguments

        def watching(event: Event) -> None:
            emit(event)
            if isinstance(event, StepDone) and event.step == 5 and not self.is_killed:
                kill_rank_1()
                self.is_killed = True
            if isinstance(event, RunStarted) and self.is_killed:
                os.kill(os.getpid(), signal.SIGINT)

        return super().train(context, run_id, prepared, meter, watching, lock)


def kill_rank_1() -> None:
    alive = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    (found,) = [p for p in alive if any(Path(file.path).name == "rank-1.log" for file in p.open_files())]
    found.kill()


def run(context: Context, recipe: Path, launcher: LocalLauncher | None = None, **arguments: Any) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent, launcher=launcher, **arguments)


def undisturbed(world: World, prepared: Prepared, folder: Path) -> None:
    train_worker(prepared, silent_hooks(folder), world)


@pytest.mark.drill
def test_killed_it_goes_on_and_ends_as_if_nothing_had_happened(context: Context, recipe: Path, tmp_path: Path) -> None:
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert [e.error for e in in_world(2, undisturbed, prepared, tmp_path / "whole")] == ["", ""]

    outcome = run(context, recipe, Disturbed(2))
    run_id = outcome.record.run_id
    assert (outcome.record.status, outcome.record.stopped_because) == ("paused", "SIGINT received")
    assert context.runs.get(run_id).stop_cause == "interrupted"
    assert outcome.go_on == f"luthier train --resume {run_id} --devices 2"
    (warning,) = [e for e in context.runs.events(run_id) if isinstance(e, WarningRaised)]
    assert (warning.code, warning.message[:42]) == ("process_died", "the process of rank 1 was ended by SIGKILL")

    folder = context.settings.run_folder(run_id)
    steps = [e.step for e in context.runs.events(run_id) if isinstance(e, StepDone)]
    assert steps == list(range(1, outcome.record.step + 1)), "no step is missing, none is there twice"
    for name in ("weights", "moments"):
        file = Path("checkpoints") / f"step-{outcome.record.step:08d}" / f"{name}.safetensors"
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()

    done = resume(context, run_id)
    alone = run(context, recipe)
    assert done.record.status == "succeeded"
    assert done.record.result is not None
    assert alone.record.result is not None
    assert done.record.result.num_tokens == alone.record.result.num_tokens
    assert done.record.result.bill is not None
    assert done.record.result.bill.tokens >= done.record.result.num_tokens, "what the kill threw away is paid, too"


def test_two_processes_write_what_one_writes(context: Context, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(method={"name": "lora", "rank": 4, "dropout": 0.0})
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    train_worker(prepared, silent_hooks(tmp_path / "one"))
    assert [e.error for e in in_world(2, undisturbed, prepared, tmp_path / "two")] == ["", ""]
    alone, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert alone.keys() == two.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(two[name], expected, atol=1e-5, rtol=0)


def test_what_a_process_refuses_is_told_and_not_tried_again(context: Context, recipe: Path) -> None:
    starts: list[str] = []

    def change_the_rows(run_id: str, _plan: Plan, _quote: object) -> None:
        starts.append(run_id)
        write_rows(recipe.parent / "train.jsonl", [chat_row(n) for n in range(41)])

    with pytest.raises(ConflictError, match=r"train file .*train.jsonl has changed since the run began"):
        run(context, recipe, LocalLauncher(2), show_plan=change_the_rows)
    record = context.runs.get(starts[0])
    assert record.status == "failed"
    assert [e for e in context.runs.events(starts[0]) if isinstance(e, WarningRaised | CheckpointSaved)] == []


def test_processes_that_die_again_and_again_are_given_up(
    context: Context, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    message = rf"rank [01] ended with exit code 1; {MAX_RESTARTS} restarts in a row"
    with pytest.raises(WorkError, match=message) as caught:
        run(context, recipe, LocalLauncher(2))
    assert "processes" in caught.value.do


def test_processes_that_end_at_a_wish_to_stop_are_not_started_again(context: Context, recipe: Path) -> None:
    class Early(LocalLauncher):
        """Its processes get the signal before they listen to it."""

        num_starts = 0

        def _attempt(self, *arguments: Any) -> _Attempt:
            _context, _run_id, _plan, emit, _stop_requested, bar = arguments
            self.num_starts += 1
            os.kill(os.getpid(), signal.SIGINT)
            return _Attempt(Answers(emit, bar), died="the process of rank 0 was ended by SIGINT")

    launcher = Early(2)
    outcome = run(context, recipe, launcher)
    assert (outcome.record.status, outcome.record.stop_cause, launcher.num_starts) == ("paused", "interrupted", 1)
    assert outcome.record.stopped_because == "SIGINT received"
    assert [e for e in context.runs.events(outcome.record.run_id) if isinstance(e, WarningRaised)] == []


def test_the_death_of_a_process_between_two_checkpoints_stays_among_the_events(context: Context, recipe: Path) -> None:
    """The next attempt drops the events after its checkpoint, and trains those steps again; it dies no second time."""

    class Dying(LocalLauncher):
        """Its first processes die after step 3, whose checkpoint is not on the disk yet."""

        num_starts = 0

        def _attempt(self, *arguments: Any) -> _Attempt:
            context, run_id, _plan, emit, _stop_requested, bar = arguments
            self.num_starts += 1
            if self.num_starts > 1:
                emit(RunStarted(from_step=2, num_steps=50))
                os.kill(os.getpid(), signal.SIGINT)
                return _Attempt(Answers(emit, bar), died="the process of rank 0 was ended by SIGINT")
            (context.settings.run_folder(run_id) / "checkpoints" / "step-00000002").mkdir(parents=True)
            emit(RunStarted(from_step=0, num_steps=50))
            for step in (1, 2, 3):
                emit(make_step(step))
            return _Attempt(Answers(emit, bar), died="the process of rank 1 was ended by SIGKILL")

    run_id = run(context, recipe, Dying(2)).record.run_id
    events = context.runs.events(run_id)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2]
    (warning,) = [event for event in events if isinstance(event, WarningRaised)]
    assert (warning.step, warning.code) == (2, "process_died")
    assert warning.message.startswith("the process of rank 1 was ended by SIGKILL after step 3")


def test_a_batch_that_two_do_not_divide_is_refused_before_anything_begins(
    context: Context, make_recipe: MakeRecipe
) -> None:
    with pytest.raises(RequestError, match=r"global_batch_size 7 on 2 devices"):
        run(context, make_recipe(training={"global_batch_size": 7, "epochs": 1, "num_threads": 1}), LocalLauncher(2))
    assert context.runs.list() == []


@pytest.mark.parametrize(
    ("own", "others", "who"), [(True, False, "another process"), (False, True, ""), (True, True, "")]
)
def test_processes_share_beginnings_and_pack_rows_where_all_of_them_have_proved_it(
    monkeypatch: pytest.MonkeyPatch, own: bool, others: bool, who: str
) -> None:
    """Machines may differ; micro-batches of validation rows are shared out by their numbers, so all need the same."""
    plan = make_plan()
    training = plan.training.model_copy(update={"shared_prefix": True, "packing": True})
    plan = plan.model_copy(update={"training": training})
    model: Any = SimpleNamespace(can_share_prefix=lambda: own, base=None)
    world: Any = SimpleNamespace(all_true=lambda mine: mine and others)
    monkeypatch.setattr("luthier.ml.training.equivalence.why_not_packed", lambda _: None if own else "it differs")
    told: list[Any] = []
    found = (
        here._shares_prefix(plan, model, world, told.append),
        here._packs(plan, model, world, told.append, spreads=False),
    )
    assert found == (own and others, own and others)
    assert [one.code for one in told] == ([] if own and others else ["no_shared_prefix", "no_packing"])
    assert all(who in one.message for one in told)


def test_a_run_is_trained_on_the_kind_of_device_that_it_was_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that resumes it, or a node that comes back, may have another kind, or none."""
    on_gpu = World(1, 2, 2, "cuda:1")
    monkeypatch.setattr("luthier.ml.inference.accelerator.device_type", lambda: "cpu")
    with pytest.raises(RequestError, match="planned for cuda, and this machine has no accelerator"):
        here._on_planned_device(World(device="cuda"), "cuda")
    assert here._on_planned_device(World(), "cpu") == World()
    monkeypatch.setattr("luthier.ml.inference.accelerator.device_type", lambda: "cuda")
    assert here._on_planned_device(on_gpu, "cuda") is on_gpu
    # It has joined the others by the device that it sees.
    assert here._on_planned_device(on_gpu, "cpu") == World(1, 2, 2, "cpu")
    with pytest.raises(RequestError, match="planned for xpu, and this machine has cuda"):
        here._on_planned_device(on_gpu, "xpu")
