"""The loop: exact gradients, exact resume, honest ends."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tests.ml.training.conftest import FixedSchedule, random_examples
from tests.vacuous import nonempty

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import CheckpointError, DivergedError
from luthier.core.events import CheckpointSaved, Event, RunEnded, StepDone, ValidationDone, WarningRaised
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.core.system import process_memory
from luthier.core.system.libraries import version
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.ml.training.loop import LoopOutcome, train
from luthier.ml.training.model import MicroBatch, TrainableModel, collate
from luthier.ml.training.objective_protocol import Losses, Unit
from luthier.ml.training.objectives.rules import load_objective
from luthier.ml.training.objectives.sft import Sft
from luthier.ml.training.optimizer import MasterOptimizer

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]


class KilledError(Exception):
    """Stands for kill -9: nothing after it runs."""


def run(
    plan: Plan,
    model: TrainableModel,
    folder: Path,
    examples: list[TokenisedExample],
    *,
    kill_at: int | None = None,
    pause_at: int | None = None,
    with_validation: bool = True,
) -> tuple[LoopOutcome, list[Event]]:
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == kill_at:
            raise KilledError

    def stop() -> str | None:
        done = [e.step for e in events if isinstance(e, StepDone)]
        return "asked to" if pause_at is not None and done and done[-1] >= pause_at else None

    validation = [([(e,) for e in random_examples(6, seed=2)], 0)] if with_validation else []
    outcome = train(
        plan,
        model,
        load_objective(plan.objective),
        [(e,) for e in examples],
        validation,
        FixedSchedule(len(examples), 4, 3),
        CheckpointStore(folder, plan.training.keep_checkpoints),
        emit=emit,
        stop_requested=stop,
        progress=SilentProgress(),
    )
    return outcome, events


def weights(model: TrainableModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.module.named_parameters() if p.requires_grad}


class Whole(NamedTuple):
    """A run that nothing has stopped."""

    weights: dict[str, torch.Tensor]
    outcome: LoopOutcome
    events: list[Event]
    folder: Path


class WholeRuns:
    """The run of each plan to its end, made once: what killed and resumed runs are held against."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder, dict[str, Whole]()

    def of(self, plan: Plan, model: MakeModel, examples: list[TokenisedExample]) -> Whole:
        key = plan.model_dump_json()
        if key not in self._made:
            folder, trained = self._folder / str(len(self._made)), model(plan)
            outcome, events = run(plan, trained, folder, examples)
            self._made[key] = Whole(weights(trained), outcome, events, folder)
        return self._made[key]


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> WholeRuns:
    return WholeRuns(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("micro", [1, 2, 3, 8])
def test_any_cut_into_micro_batches_gives_the_gradient_of_the_big_batch(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], method: str, micro: int
) -> None:
    def gradients(size: int) -> list[torch.Tensor]:
        model = make_model(make_plan(method), torch.float64)
        with torch.no_grad():
            for p in model.module.parameters():
                if p.requires_grad:
                    p.add_(0.01 * torch.ones_like(p).cumsum(0))
        optimizer = MasterOptimizer(model.module, make_plan(method).training)
        chosen = examples[:8]
        num_trained = sum(e.num_trained_tokens for e in chosen)
        for start in range(0, 8, size):
            total, _ = model.loss_sum(collate(chosen[start : start + size], model.pad_id, "cpu"))
            (total / num_trained).backward()
            optimizer.collect()
        return [g.clone() for g in optimizer.gradients]

    for one, other in zip(gradients(micro), gradients(8), strict=True):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=1e-10)


def test_weights_without_gradient_keep_their_bytes_and_are_named_at_the_end(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan("full", weight_decay=0.1, learning_rate=1e-3)
    model = make_model(plan)
    model.base.spare = torch.nn.Linear(5, 3, bias=False)
    before = model.base.spare.weight.detach().clone()
    outcome, events = run(plan, model, tmp_path, examples)
    assert torch.equal(model.base.spare.weight, before)
    (warned,) = [event for event in events if isinstance(event, WarningRaised)]
    assert (warned.step, warned.code) == (6, "unreached_weights")
    num = sum(parameter.requires_grad for parameter in model.module.parameters())
    assert warned.message == (
        f"1 of {num} trained tensors (15 parameters) had no gradient in any step and are unchanged: spare.weight"
    )
    assert outcome.warnings == (warned.message,)


def test_loss_is_the_plain_mean_over_learned_tokens(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample]
) -> None:
    model = make_model(make_plan(), torch.float64)
    chosen = examples[:5]
    total, correct = model.loss_sum(collate(chosen, model.pad_id, "cpu"))
    expected, right = 0.0, 0
    for example in chosen:
        ids = torch.tensor(list(example.input_ids))[None]
        logits = model.module(input_ids=ids).logits[0]
        for position in range(1, example.num_tokens):
            if example.loss_mask[position]:
                expected -= float(torch.log_softmax(logits[position - 1], -1)[ids[0, position]].detach())
                right += int(logits[position - 1].argmax() == ids[0, position])
    assert float(total.detach()) == pytest.approx(expected, rel=1e-10)
    assert int(correct) == right


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, method: str
) -> None:
    plan = make_plan(method, num_steps=60, validate_every_steps=20, learning_rate=0.05 if method == "lora" else 0.005)
    outcome, events = run(plan, make_model(plan), tmp_path, examples)
    losses = [e.loss for e in events if isinstance(e, StepDone)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert outcome.state.num_examples == 60 * 4


@pytest.mark.parametrize("kill_at", [None, 2])
def test_freed_memory_is_kept_while_it_trains_and_returned_however_it_ends(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_at: int | None,
) -> None:
    calls: list[str] = []

    def keep() -> bool:
        calls.append("keep")
        return True

    monkeypatch.setattr(process_memory, "keep_freed_memory", keep)
    monkeypatch.setattr(process_memory, "return_freed_memory", lambda: calls.append("return"))
    plan = make_plan()
    with pytest.raises(KilledError) if kill_at else contextlib.nullcontext():
        run(plan, make_model(plan), tmp_path, examples, kill_at=kill_at)
    assert calls == ["keep", "return"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kill_at", [1, 2, 3, 5, 6])
def test_killed_and_resumed_ends_byte_for_byte_the_same(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    whole_runs: WholeRuns,
    precision: str,
    kill_at: int,
) -> None:
    plan = make_plan(dropout=0.2, precision=precision)
    whole = whole_runs.of(plan, make_model, examples)
    with pytest.raises(KilledError):
        run(plan, make_model(plan), tmp_path, examples, kill_at=kill_at)
    resumed = make_model(plan)
    outcome, events = run(plan, resumed, tmp_path, examples)
    for name, expected in nonempty(whole.weights.items()):
        assert torch.equal(weights(resumed)[name], expected), name
    state = whole.outcome.state.model_copy(update={"seconds": 0})
    assert outcome.state.model_copy(update={"seconds": 0}) == state
    later = [(e.step, e.loss, e.gradient_norm) for e in events if isinstance(e, StepDone)]
    assert later == [(e.step, e.loss, e.gradient_norm) for e in whole.events if isinstance(e, StepDone)][-len(later) :]


def test_a_pause_keeps_every_step(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan(checkpoint_every_steps=100, validate_every_steps=100)
    outcome, events = run(plan, make_model(plan), tmp_path, examples, pause_at=3)
    assert (outcome.status, outcome.reason, outcome.state.step) == ("paused", "asked to", 3)
    assert events[-1] == RunEnded(step=3, status="paused", reason="asked to")
    _, events = run(plan, make_model(plan), tmp_path, examples)
    assert [e.step for e in events if isinstance(e, StepDone)] == [4, 5, 6]


def test_the_best_weights_are_left_in_the_model(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan(num_steps=12, learning_rate=0.3, schedule="constant")
    model = make_model(plan)
    outcome, events = run(plan, model, tmp_path, examples)
    validations = {e.step: e.loss for e in events if isinstance(e, ValidationDone)}
    best = min(validations, key=lambda step: validations[step])
    assert outcome.state.early_stopping.best_step == best
    assert best < 12, "a rate of 0.3 must spoil the model, or this test shows nothing"
    with torch.no_grad():
        total, _ = model.loss_sum(collate(random_examples(6, seed=2), model.pad_id, "cpu"))
    num_trained = sum(e.num_trained_tokens for e in random_examples(6, seed=2))
    model.module.eval()
    assert float(total) / num_trained == pytest.approx(validations[best], rel=1e-4)


def test_early_stopping_ends_the_run_and_says_why(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan(
        num_steps=40, learning_rate=0.5, schedule="constant", validate_every_steps=1, early_stopping_patience=2
    )
    outcome, events = run(plan, make_model(plan), tmp_path, examples)
    assert outcome.status == "succeeded"
    assert outcome.state.step < 40
    assert "early stopping at step" in outcome.reason
    assert outcome.state.step == outcome.state.early_stopping.best_step + 2
    assert isinstance(events[-1], RunEnded)


def test_without_validation_the_last_weights_stay(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan(validate_every_steps=0)
    outcome, events = run(plan, make_model(plan), tmp_path, examples, with_validation=False)
    assert outcome.state.step == 6
    assert not [e for e in events if isinstance(e, ValidationDone)]
    assert [e.step for e in events if isinstance(e, CheckpointSaved)] == [2, 4, 6]


def test_nan_stops_at_the_last_good_weights(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan(checkpoint_every_steps=100, validate_every_steps=100)
    model = make_model(plan)
    real, calls = model.loss_sum, 0

    def poisoned(batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        total, correct = real(batch)  # type: ignore[arg-type]
        return (total * float("nan") if calls == 7 else total), correct  # the fourth step's first micro-batch

    model.loss_sum = poisoned  # type: ignore[method-assign, assignment]
    with pytest.raises(DivergedError, match=r"step 4: loss nan[\s\S]*learning_rate[\s\S]*step 3, the last good"):
        run(plan, model, tmp_path, examples)
    found, _ = CheckpointStore(tmp_path, 2).latest()
    assert found is not None
    assert found.state.step == 3
    assert all(nonempty(torch.isfinite(w).all() for w in found.weights.values()))


def test_a_validation_that_is_not_finite_ends_the_run_before_its_weights_are_kept(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the last update no step follows that would find weights which compute nothing any more."""
    losses = Sft.losses

    def lost_in_validation(self: Sft, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        found = losses(self, model, units, batch)
        return found if model.module.training else replace(found, total=found.total * math.nan)

    monkeypatch.setattr(Sft, "losses", lost_in_validation)
    plan = make_plan(validate_every_steps=6, checkpoint_every_steps=2)
    with pytest.raises(DivergedError, match=r"validation after step 6: loss nan[\s\S]*learning_rate"):
        run(plan, make_model(plan), tmp_path, examples)
    assert CheckpointStore(tmp_path, 2).steps() == [2, 4]


def test_a_checkpoint_of_another_plan_is_refused(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    run(make_plan(), make_model(make_plan()), tmp_path, examples)
    other = make_plan(learning_rate=5e-3)
    with pytest.raises(CheckpointError, match="belongs to plan"):
        run(other, make_model(other), tmp_path, examples)


def test_a_broken_checkpoint_is_said_and_stepped_over(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan()
    model = make_model(plan)
    run(plan, model, tmp_path / "a", examples)
    with pytest.raises(KilledError):
        run(plan, make_model(plan), tmp_path / "b", examples, kill_at=5)
    newest = tmp_path / "b" / "step-00000004" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = make_model(plan)
    outcome, events = run(plan, resumed, tmp_path / "b", examples)
    warnings = [e for e in events if isinstance(e, WarningRaised)]
    assert [w.code for w in warnings] == ["broken_checkpoint"]
    assert "continuing from the earlier step 2" in outcome.warnings[0]
    for name, expected in nonempty(weights(model).items()):
        assert torch.equal(weights(resumed)[name], expected)


def test_a_resume_with_another_version_of_a_library_is_said_once(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan()
    with monkeypatch.context() as before:
        before.setattr("luthier.ml.training.loop.version", lambda name: "2.0.9" if name == "torch" else version(name))
        with pytest.raises(KilledError):
            run(plan, make_model(plan), tmp_path, examples, kill_at=3)
    outcome, events = run(plan, make_model(plan), tmp_path, examples, pause_at=4)
    (said,) = [event for event in events if isinstance(event, WarningRaised)]
    assert (said.code, said.step) == ("other_versions", 2)
    assert f"with torch {version('torch')} in place of 2.0.9:" in said.message
    assert outcome.warnings == (said.message,)
    outcome, events = run(plan, make_model(plan), tmp_path, examples)
    assert (outcome.status, outcome.state.step) == ("succeeded", 6)
    assert outcome.warnings == (), "step 4 was computed with the present versions"


def test_a_checkpoint_of_before_versions_were_noted_is_resumed(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan()
    with monkeypatch.context() as before:
        before.setattr("luthier.ml.training.loop._versions", lambda _: {})
        run(plan, make_model(plan), tmp_path, examples, pause_at=3)
    outcome, _ = run(plan, make_model(plan), tmp_path, examples)
    assert (outcome.status, outcome.warnings) == ("succeeded", ())


def test_padding_changes_nothing(make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample]) -> None:
    model = make_model(make_plan(), torch.float64)
    together, _ = model.loss_sum(collate(examples[:6], model.pad_id, "cpu"))
    apart = sum(float(model.loss_sum(collate([e], model.pad_id, "cpu"))[0].detach()) for e in examples[:6])
    assert float(together.detach()) == pytest.approx(apart, rel=1e-12)
    assert not math.isnan(apart)
