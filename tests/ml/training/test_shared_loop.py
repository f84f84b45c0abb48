"""The loop on two processes: equal to one, byte for byte the same after a kill, and at home on any number."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ml.training.conftest import random_examples
from tests.vacuous import nonempty

from luthier.core.events import CheckpointSaved, Event, RunEnded, StepDone, ValidationDone
from luthier.core.plan import AveragePlan, OptimizerPlan, Plan
from luthier.core.ports import SilentProgress
from luthier.ml.data.tokenise.batches import StepSchedule
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.ml.training.distributed import ALONE, World
from luthier.ml.training.loop import train
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objectives.rules import load_objective
from luthier.ml.training.sharding import spread, whole
from luthier.testing.world import in_world

MakePlan = Callable[..., Plan]
NUM_EXAMPLES = 21  # of 4 a step: the sixth step has one example, and one of two ranks has nothing to do


def trained(
    world: World, plan: Plan, folder: Path, kill: int = 0, wish: int = 0, drift: bool = False, is_spread: bool = False
) -> Any:
    """Events, state and weights of a run; the last rank kills itself after step `kill`, or wishes to stop at `wish`."""
    model = TrainableModel.load(plan)
    if is_spread:
        spread(model, world)
    events: list[Event] = []
    examples = random_examples(NUM_EXAMPLES, seed=1)
    steps: list[int] = []
    is_last = world.rank == world.size - 1

    def stop() -> str | None:
        steps.append(0)
        if is_last and kill and len(steps) > kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if drift and is_last and len(steps) == 2:
            with torch.no_grad():
                optimizer_of(model).masters[0].add_(1e-3)
        return "rank 1 was told to" if is_last and wish and len(steps) > wish else None

    outcome = train(
        plan,
        model,
        load_objective(plan.objective),
        [(example,) for example in examples],
        [([(e,)], 0) for e in random_examples(5, seed=2)],
        StepSchedule(
            [e.num_tokens for e in examples],
            global_batch_size=4,
            micro_batch_tokens=30,
            order="by_length",
            seed=0,
        ),
        CheckpointStore(folder, 9),
        emit=events.append,
        stop_requested=stop,
        progress=SilentProgress(),
        world=world,
    )
    weights = {
        n: whole(p.detach()).float().numpy().copy() for n, p in model.module.named_parameters() if p.requires_grad
    }
    return events, outcome.state.model_copy(update={"seconds": 0.0}), weights


def optimizer_of(model: TrainableModel) -> Any:
    import gc

    from luthier.ml.training.optimizer import MasterOptimizer

    return next(o for o in gc.get_objects() if isinstance(o, MasterOptimizer))


def on_two(plan: Plan, folder: Path, **arguments: Any) -> tuple[Any, Any]:
    ended = in_world(2, trained, plan, folder, *arguments.values())
    assert [e.error for e in ended] == ["", ""]
    return ended[0].value, ended[1].value


def steps_of(events: list[Event]) -> list[tuple[int, float, float, int, int]]:
    steps = [e for e in events if isinstance(e, StepDone)]
    return [(e.step, e.loss, e.gradient_norm, e.num_tokens, e.num_trained_tokens) for e in steps]


def assert_same(one: dict[str, Any], other: dict[str, Any], atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, expected in one.items():
        torch.testing.assert_close(
            torch.from_numpy(other[name]), torch.from_numpy(expected), atol=atol, rtol=0, msg=name
        )


@pytest.mark.parametrize("method", ["lora", "adalora", "full"])
def test_two_processes_give_what_one_gives(make_plan: MakePlan, tmp_path: Path, method: str) -> None:
    rate = 1e-3 if method == "full" else 1e-2
    plan = make_plan(method, num_steps=8, num_steps_per_epoch=6, learning_rate=rate)
    alone = trained(ALONE, plan, tmp_path / "one")
    first, second = on_two(plan, tmp_path / "two")
    assert_same(first[2], second[2])
    assert_same(alone[2], first[2], atol=1e-5)
    for (step, loss, norm, *counts), expected in zip(steps_of(first[0]), steps_of(alone[0]), strict=True):
        assert (step, *counts) == (expected[0], *expected[3:])
        assert loss == pytest.approx(expected[1], abs=1e-5)
        assert norm == pytest.approx(expected[2], abs=1e-5)
    measured = [e for e in first[0] if isinstance(e, ValidationDone)]
    for found, wanted in nonempty(zip(measured, [e for e in alone[0] if isinstance(e, ValidationDone)], strict=True)):
        assert found.loss == pytest.approx(wanted.loss, abs=1e-5)
        assert found.measures == pytest.approx(wanted.measures)
    assert first[1].num_examples == alone[1].num_examples
    assert steps_of(first[0]) == steps_of(second[0])


@pytest.mark.parametrize("kill", [3, 4])
def test_killed_and_resumed_ends_byte_for_byte_the_same(make_plan: MakePlan, tmp_path: Path, kill: int) -> None:
    plan = make_plan(dropout=0.2, num_steps=8)
    whole, _ = on_two(plan, tmp_path / "a")
    survivor, killed = in_world(2, trained, plan, tmp_path / "b", kill)
    assert killed.exit_code == -signal.SIGKILL
    assert "rank 0" in survivor.error, "the other one must not wait for ever, nor go on alone"
    resumed, _ = on_two(plan, tmp_path / "b")
    assert_same(whole[2], resumed[2])
    assert resumed[1] == whole[1]
    later = steps_of(resumed[0])
    assert later == steps_of(whole[0])[-len(later) :]
    assert len(later) < 8


def test_a_run_goes_on_with_another_number_of_processes(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(num_steps=8, checkpoint_every_steps=100, validate_every_steps=100)
    whole = trained(ALONE, plan, tmp_path / "one")
    first, _ = on_two(plan, tmp_path / "two", kill=0, wish=3)
    assert first[0][-1] == RunEnded(step=3, status="paused", reason="rank 1 was told to")
    assert [e.step for e in first[0] if isinstance(e, CheckpointSaved)] == [3]
    alone = trained(ALONE, plan, tmp_path / "two", 0, 3)
    assert alone[1].step == 6
    last, _ = on_two(plan, tmp_path / "two")
    assert_same(whole[2], last[2], atol=1e-5)
    assert last[1].num_tokens == whole[1].num_tokens


@pytest.mark.parametrize("is_spread", [False, True])
def test_an_average_is_the_same_on_two_processes_and_after_a_pause(
    make_plan: MakePlan, tmp_path: Path, is_spread: bool
) -> None:
    plan = make_plan(num_steps=6, checkpoint_every_steps=100, average=AveragePlan(kind="ema", decay=0.7))
    alone = trained(ALONE, plan, tmp_path / "one")
    whole, other = on_two(plan, tmp_path / "two", kill=0, wish=0, drift=False, is_spread=is_spread)
    assert_same(whole[2], other[2])
    assert_same(alone[2], whole[2], atol=1e-5)
    on_two(plan, tmp_path / "again", kill=0, wish=3, drift=False, is_spread=is_spread)
    resumed, _ = on_two(plan, tmp_path / "again", kill=0, wish=0, drift=False, is_spread=is_spread)
    assert_same(whole[2], resumed[2])
    assert resumed[1] == whole[1]


@pytest.mark.parametrize(("method", "optimizer"), [("eva", "adamw"), ("lora", "schedule_free_adamw")])
def test_what_is_found_before_the_first_step_or_averaged_is_the_same_on_two(
    make_plan: MakePlan, tmp_path: Path, method: str, optimizer: str
) -> None:
    plan = make_plan(method, num_steps=8, num_steps_per_epoch=6, optimizer=OptimizerPlan(name=optimizer))
    alone = trained(ALONE, plan, tmp_path / "one")
    first, second = on_two(plan, tmp_path / "two", kill=0, wish=0, drift=False)
    assert_same(first[2], second[2])
    assert_same(alone[2], first[2], atol=1e-5)


def test_weights_that_drift_apart_are_said_and_mended(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(num_steps=4)
    first, second = on_two(plan, tmp_path, kill=0, wish=0, drift=True)
    warned = [e.code for e in first[0] if e.kind == "warning"]
    assert warned == ["replicas_differ"]
    assert_same(first[2], second[2])


@pytest.mark.parametrize(
    ("method", "numba_kernels"),
    [("full", False), ("full", True), ("lora", False), ("lora", True), ("pissa", False)],
)
def test_weights_spread_over_two_give_what_one_gives(
    make_plan: MakePlan, tmp_path: Path, method: str, numba_kernels: bool
) -> None:
    rate = 1e-3 if method == "full" else 1e-2
    plan = make_plan(method, num_steps=8, num_steps_per_epoch=6, learning_rate=rate, numba_kernels=numba_kernels)
    alone = trained(ALONE, plan, tmp_path / "one")
    first, second = on_two(plan, tmp_path / "two", kill=0, wish=0, drift=False, is_spread=True)
    assert_same(first[2], second[2])
    assert_same(alone[2], first[2], atol=1e-5)
    for (step, loss, norm, *counts), expected in nonempty(zip(steps_of(first[0]), steps_of(alone[0]), strict=True)):
        assert (step, *counts) == (expected[0], *expected[3:])
        assert loss == pytest.approx(expected[1], abs=1e-5)
        assert norm == pytest.approx(expected[2], abs=1e-5)


def test_spread_or_not_a_checkpoint_is_the_same(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan("full", num_steps=8, learning_rate=1e-3, precision="bfloat16", validate_every_steps=100)
    whole_run, _ = on_two(plan, tmp_path / "whole", kill=0, wish=0, drift=False, is_spread=True)
    paused, _ = on_two(plan, tmp_path / "two", kill=0, wish=5, drift=False, is_spread=True)
    assert paused[1].step == 5
    resumed, _ = on_two(plan, tmp_path / "two", kill=0, wish=0, drift=False, is_spread=True)
    assert_same(whole_run[2], resumed[2])
    for step in (2, 4, 6, 8):
        for name in ("weights", "moments"):
            file = Path(f"step-{step:08d}") / f"{name}.safetensors"
            assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    found, _ = CheckpointStore(tmp_path / "two", 9).latest()
    assert found is not None
    model = TrainableModel.load(plan)
    assert {n: tuple(t.shape) for n, t in found.weights.items()} == {
        n: tuple(p.shape) for n, p in model.module.named_parameters()
    }
    for step in (8, 6):
        (tmp_path / "two" / f"step-{step:08d}" / "manifest.json").unlink()
    alone = trained(ALONE, plan, tmp_path / "two")
    assert_same(whole_run[2], alone[2], atol=2e-2)
