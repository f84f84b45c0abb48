"""Micro-batches computed side by side: the same bytes with any number of workers, also after kills."""

from __future__ import annotations

import gc
import os
import platform
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from tests.ml.training.conftest import random_examples
from tests.vacuous import nonempty

from luthier.core.events import Event, StepDone, ValidationDone, WarningRaised
from luthier.core.plan import AveragePlan, ObjectivePlan, Plan
from luthier.core.ports import ProgressTask, SilentProgress
from luthier.core.system import process_memory
from luthier.ml.data.tokenise.batches import StepSchedule
from luthier.ml.training.checkpoint import CheckpointStore, LoopState
from luthier.ml.training.distributed import ALONE
from luthier.ml.training.fit import EarlyStopping
from luthier.ml.training.loop import train
from luthier.ml.training.micro_batch_workers import micro_batch_workers
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objective_protocol import Batch
from luthier.ml.training.objectives.rules import load_objective
from luthier.ml.training.step import accumulate, validate

MakePlan = Callable[..., Plan]
EXAMPLES = random_examples(22, seed=1)  # of 6 a step: the fourth step has four examples


class Trained(NamedTuple):
    weights: dict[str, torch.Tensor]
    events: list[Event]
    num_children: list[int]
    """Of this process, before each step."""


class KilledError(Exception):
    """Stands for kill -9: nothing after it runs."""


def trained(
    plan: Plan,
    folder: Path,
    *,
    kill_worker_at: int = 0,
    kill_run_at: int = 0,
    kill_worker_in_validation: bool = False,
    min_micro_batches: int = 4,
    num_validation: int = 3,
) -> Trained:
    model = TrainableModel.load(plan)
    events: list[Event] = []
    children: list[int] = []
    others = {child.pid for child in psutil.Process().children()}  # of tests before

    def emit(event: Event) -> None:
        events.append(event)
        if kill_run_at and isinstance(event, StepDone) and event.step == kill_run_at:
            raise KilledError

    def stop() -> None:
        found = [child for child in psutil.Process().children() if child.pid not in others]
        children.append(len(found))
        if kill_worker_at and len(children) == kill_worker_at:
            os.kill(found[0].pid, signal.SIGKILL)

    schedule = StepSchedule(
        [e.num_tokens for e in EXAMPLES],
        global_batch_size=plan.training.global_batch_size,
        micro_batch_tokens=300,
        order="by_length",
        seed=0,
        min_micro_batches=min_micro_batches,
    )
    validation: list[Batch] = [([(e,) for e in random_examples(2 + n, seed=n)], ()) for n in range(num_validation)]

    class Killing(SilentProgress):
        """Kills a worker once a micro-batch of a validation is done."""

        def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
            task = super().task(title, total, unit, done)
            if title == "validating":
                task.advance = kill  # type: ignore[method-assign]
            return task

    def kill(amount: float = 1) -> None:
        del amount
        for child in psutil.Process().children():
            if child.pid not in others:
                os.kill(child.pid, signal.SIGKILL)
                return

    train(
        plan,
        model,
        load_objective(plan.objective),
        [(e,) for e in EXAMPLES],
        validation,
        schedule,
        CheckpointStore(folder, 9),
        emit=emit,
        stop_requested=stop,
        progress=Killing() if kill_worker_in_validation else SilentProgress(),
    )
    weights = {n: p.detach().clone() for n, p in model.module.named_parameters() if p.requires_grad}
    return Trained(weights, events, children)


def figures(events: list[Event]) -> list[Any]:
    """What was computed, without times."""
    done = [e.model_copy(update={"seconds": 0.0}) for e in events if isinstance(e, StepDone | ValidationDone)]
    return nonempty([e.model_dump() for e in done])


def warnings(events: list[Event]) -> list[str]:
    return [e.code for e in events if isinstance(e, WarningRaised)]


def assert_same(one: Trained, other: Trained) -> None:
    assert one.weights.keys() == other.weights.keys()
    for name, weight in nonempty(one.weights.items()):
        assert torch.equal(weight, other.weights[name]), name
    assert figures(one.events) == figures(other.events)


@pytest.fixture
def plan_with(make_plan: MakePlan) -> Callable[..., Plan]:
    def make(workers: int, method: str = "lora", **more: Any) -> Plan:
        values = {"num_steps": 5, "num_steps_per_epoch": 4, "global_batch_size": 6, "num_threads": 2}
        values |= {"micro_batch_workers": workers, "min_micro_batches": 4} | more
        return make_plan(method, 0.1, **values)

    return make


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("lora", {}),
        ("lora", {"precision": "bfloat16", "neftune_alpha": 5.0}),
        ("lora", {"numba_kernels": True}),
        ("adalora", {}),
        ("dora", {}),  # whose layers keep the norms of their weights until these change
        ("lora", {"settings": {"modules_to_save": ("embed_tokens", "lm_head")}}),
        ("lora", {"settings": {"modules_to_save": "lm_head"}, "precision": "bfloat16"}),
        ("full", {"learning_rate": 1e-3}),
    ],
)
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    plan_with: MakePlan, tmp_path: Path, method: str, more: dict[str, Any]
) -> None:
    two = trained(plan_with(2, method, **more), tmp_path / "two")
    three = trained(plan_with(3, method, **more), tmp_path / "three")
    # A worker is killed before the first step: this process computes all of them.
    alone = trained(plan_with(2, method, **more), tmp_path / "alone", kill_worker_at=1)
    assert (set(two.num_children), set(three.num_children)) == ({2}, {3})
    assert warnings(two.events) == warnings(three.events) == []
    assert_same(two, three)
    assert_same(two, alone)


def validations(trained: Trained) -> list[ValidationDone]:
    return nonempty([e for e in trained.events if isinstance(e, ValidationDone)])


@pytest.mark.parametrize("num_validation", [1, 2, 5])
def test_a_validation_is_the_same_with_any_number_of_workers(
    plan_with: MakePlan, tmp_path: Path, num_validation: int
) -> None:
    """Also where a worker dies in the middle of it; an average of the weights is what is validated."""
    average = AveragePlan(kind="ema", decay=0.9)
    runs = [
        trained(plan_with(num, average=average), tmp_path / name, num_validation=num_validation, **more)
        for name, num, more in (
            ("two", 2, {}),
            ("three", 3, {}),
            ("killed", 2, {"kill_worker_in_validation": True}),
            ("alone", 2, {"kill_worker_at": 1}),
        )
    ]
    first = runs[0]
    for other in runs[1:]:
        assert_same(first, other)
    assert [e.step for e in validations(first)] == [2, 4, 5]
    assert warnings(runs[2].events) == ["micro_batch_workers_lost"]
    assert warnings(first.events) == []


def test_workers_validate_the_weights_of_the_step(plan_with: MakePlan, tmp_path: Path) -> None:
    """Not those that they were forked with: the best weights, which the run ends with, have the loss that was seen."""
    plan = plan_with(2, learning_rate=0.03)
    side_by_side = trained(plan, tmp_path)
    seen = validations(side_by_side)
    best = min(seen, key=lambda e: e.loss)
    assert len({e.loss for e in seen}) == len(seen) == 3
    model = TrainableModel.load(plan)
    weights = dict(model.module.named_parameters())
    with torch.no_grad():
        for name, weight in nonempty(side_by_side.weights.items()):
            weights[name].copy_(weight)
    batches: list[Batch] = [([(e,) for e in random_examples(2 + n, seed=n)], ()) for n in range(3)]
    state = LoopState(plan_hash="", early_stopping=EarlyStopping(patience=0), window_loss_weight=1.0)
    _, found = validate(model, load_objective(plan.objective), batches, state, SilentProgress())
    assert found.loss == pytest.approx(best.loss, rel=1e-5)
    assert found.num_trained_tokens == best.num_trained_tokens
    assert found.measures.keys() == best.measures.keys()


def test_the_loss_is_that_of_one_process_with_the_whole_step_in_one_micro_batch(
    plan_with: MakePlan, make_plan: MakePlan, tmp_path: Path
) -> None:
    side_by_side = trained(plan_with(2).model_copy(update={"method": make_plan("lora").method}), tmp_path / "a")
    values = {"num_steps": 5, "num_steps_per_epoch": 4, "global_batch_size": 6}
    plain = trained(make_plan("lora", 0.0, **values), tmp_path / "b", min_micro_batches=1)
    assert set(plain.num_children) == {0}
    for name, weight in nonempty(plain.weights.items()):
        torch.testing.assert_close(side_by_side.weights[name], weight, atol=1e-5, rtol=0)


def test_a_worker_that_is_killed_changes_nothing_but_the_speed(plan_with: MakePlan, tmp_path: Path) -> None:
    whole = trained(plan_with(2), tmp_path / "whole")
    hurt = trained(plan_with(2), tmp_path / "hurt", kill_worker_at=3)
    assert_same(whole, hurt)
    assert warnings(hurt.events) == ["micro_batch_workers_lost"]
    (warning,) = [e for e in hurt.events if isinstance(e, WarningRaised)]
    assert "SIGKILL" in warning.message
    assert hurt.num_children == [2, 2, 2, 0, 0]


def test_a_run_that_is_killed_resumes_to_the_byte(plan_with: MakePlan, tmp_path: Path) -> None:
    others = set(psutil.Process().children())
    whole = trained(plan_with(2), tmp_path / "whole")
    with pytest.raises(KilledError):
        trained(plan_with(2), tmp_path / "killed", kill_run_at=3)
    assert set(psutil.Process().children()) <= others
    resumed = trained(plan_with(3), tmp_path / "killed")
    for name, weight in nonempty(whole.weights.items()):
        assert torch.equal(weight, resumed.weights[name]), name
    assert figures(resumed.events) == [f for f in figures(whole.events) if f["step"] > 2]


def test_a_step_of_one_micro_batch_is_computed_here(plan_with: MakePlan, tmp_path: Path) -> None:
    found = trained(plan_with(2, global_batch_size=1, num_steps=3), tmp_path / "a")
    again = trained(plan_with(3, global_batch_size=1, num_steps=3), tmp_path / "b")
    assert_same(found, again)


def test_a_model_that_had_workers_is_freed(
    plan_with: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a search, one after the other in one process."""
    load, seen = TrainableModel.load, list[weakref.ref[torch.nn.Module]]()

    def spied(plan: Plan) -> TrainableModel:
        model = load(plan)
        seen.append(weakref.ref(model.module))
        return model

    monkeypatch.setattr(TrainableModel, "load", spied)
    trained(plan_with(2), tmp_path)
    gc.collect()
    assert [one() for one in seen] == [None]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other allocators")
def test_the_training_process_does_not_keep_what_a_micro_batch_took(
    plan_with: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep as much as a micro-batch takes beside the workers for the whole run, which no plan counts."""
    plan, held, this = plan_with(2), [], os.getpid()

    def taking_more(*values: Any) -> Any:
        if os.getpid() == this:  # blocks below the threshold of a mapping, and between them small ones that stay
            blocks = []
            for _ in range(128):
                blocks.append(torch.ones(1 << 18))
                held.append(torch.ones(16))
        return accumulate(*values)

    monkeypatch.setattr("luthier.ml.training.micro_batch_workers.accumulate", taking_more)
    model, schedule = (
        TrainableModel.load(plan),
        StepSchedule([8] * 4, global_batch_size=4, micro_batch_tokens=16, order="as_given", seed=0),
    )
    objective, units = load_objective(plan.objective), [(e,) for e in random_examples(4, seed=1)]
    process_memory.keep_freed_memory()  # so that blocks of a megabyte lie in the heap
    try:
        process_memory.release_free_pages()
        before = process_memory.resident_bytes()
        with micro_batch_workers(plan, model, objective, units, [], schedule, [], 0, ALONE, _fail) as workers:
            assert workers is not None
            assert len(held) == 128  # it was computed here
            assert process_memory.resident_bytes() - before < 64 << 20  # of 128 MiB
            # nor what a step of a single micro-batch takes, which it computes itself
            sums = [torch.zeros(p.shape) for p in model.module.parameters() if p.requires_grad]
            workers.compute(0, 1, 1.0, sums, lambda *_: None)
            assert len(held) == 256
            assert process_memory.resident_bytes() - before < 64 << 20
    finally:
        process_memory.return_freed_memory()


def _fail(_step: int, code: str, message: str) -> None:
    raise AssertionError(f"{code}: {message}")


def test_an_objective_that_sees_the_whole_step_has_no_workers(plan_with: MakePlan) -> None:
    plan = plan_with(2)
    said: list[tuple[int, str, str]] = []
    objective = ObjectivePlan(name="kto", beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
    plan, kto = plan.model_copy(update={"objective": objective}), load_objective(objective)
    schedule = StepSchedule([4], global_batch_size=1, micro_batch_tokens=9, order="as_given", seed=0)
    model = TrainableModel.load(plan)
    with micro_batch_workers(
        plan, model, kto, [], [], schedule, [], 0, ALONE, lambda *one: said.append(one)
    ) as workers:
        assert workers is None
    ((_, code, message),) = said
    assert code == "no_micro_batch_workers"
    assert "kto" in message
