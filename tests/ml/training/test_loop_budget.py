"""The loop under a cap, on a clock that its own events turn: where it stops, and that nothing else changes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clock import Clock
from tests.ml.training.conftest import FixedSchedule, random_examples
from tests.ml.training.test_budget import budget
from tests.vacuous import nonempty

from luthier.core.dataset import TokenisedExample
from luthier.core.events import BillUpdated, CheckpointSaved, Event, StepDone, ValidationDone, WarningRaised
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.ml.training.budget import Meter
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.ml.training.ledger import LEDGER, Ledger
from luthier.ml.training.loop import LoopOutcome, train
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objectives.rules import load_objective

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]

SECONDS_A_TOKEN, VALIDATION_SECONDS, CHECKPOINT_SECONDS = 0.1, 3.0, 1.0


class KilledError(Exception):
    """Stands for kill -9: nothing after it runs."""


class World:
    """A run's folder and the time that its actions take, over as many processes as it needs."""

    def __init__(self, make_plan: MakePlan, make_model: MakeModel, folder: Path, *, noise: float = 0.0) -> None:
        self.plan = make_plan(
            num_steps=12, num_steps_per_epoch=6, validate_every_steps=4, checkpoint_every_steps=5, dropout=0.2
        )
        self.make_model, self.folder, self.noise = make_model, folder, noise
        self.examples, self.validation = random_examples(24, seed=1), [([(e,) for e in random_examples(6, seed=2)], 0)]
        self.clock, self.draw = Clock(), random.Random(3)
        self.events: list[Event] = []
        self.longest_step = 0.0

    def run(self, *, kill_after: int | None = None, **caps: Any) -> tuple[LoopOutcome, TrainableModel, Meter]:
        def emit(event: Event) -> None:
            self.events.append(event)
            if isinstance(event, StepDone):
                took = event.num_tokens * SECONDS_A_TOKEN * (1 + self.noise * self.draw.uniform(-1, 1))
                self.longest_step = max(took, self.longest_step)
                self.clock.now += took
                if event.step == kill_after:
                    raise KilledError
            elif isinstance(event, ValidationDone):
                self.clock.now += VALIDATION_SECONDS
            elif isinstance(event, CheckpointSaved):
                self.clock.now += CHECKPOINT_SECONDS

        plan = self.plan.model_copy(update={"budget": budget(**caps)})
        model, meter = self.make_model(plan), Meter(plan.budget, Ledger(self.folder), clock=self.clock)
        outcome = train(
            plan,
            model,
            load_objective(plan.objective),
            [(e,) for e in self.examples],
            self.validation,
            FixedSchedule(24, 4, 3),
            CheckpointStore(self.folder / "checkpoints", 2),
            emit=emit,
            stop_requested=lambda: None,
            progress=SilentProgress(),
            meter=meter,
        )
        meter.close()
        return outcome, model, meter

    def steps(self) -> list[tuple[int, float]]:
        return [(e.step, e.loss) for e in self.events if isinstance(e, StepDone)]

    def validations(self) -> list[tuple[int, float, bool]]:
        return [(e.step, e.loss, e.is_best) for e in self.events if isinstance(e, ValidationDone)]


@pytest.fixture
def world(make_plan: MakePlan, make_model: MakeModel, tmp_path: Path) -> Callable[..., World]:
    count = 0

    def make(**settings: Any) -> World:
        nonlocal count
        count += 1
        return World(make_plan, make_model, tmp_path / str(count), **settings)

    return make


def weights(model: TrainableModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.module.named_parameters() if p.requires_grad}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


def test_stopped_at_every_possible_place_and_resumed_it_ends_byte_for_byte_the_same(
    world: Callable[..., World],
) -> None:
    free = world()
    _, undisturbed, meter = free.run()
    whole = meter.spent.seconds
    for share in (0.08, 0.36, 0.42, 0.62, 0.88, 0.97):
        capped = world()
        outcome, _, spent = capped.run(hours=share * whole / 3600)
        assert outcome.status == "paused"
        assert outcome.reason.startswith("budget of ")
        assert spent.spent.seconds <= share * whole + capped.longest_step
        newest, _ = CheckpointStore(capped.folder / "checkpoints", 2).latest()
        assert newest is not None or outcome.state.step == 0
        assert newest is None or newest.state == outcome.state
        _, resumed, _ = capped.run(hours=2 * whole / 3600)
        assert same(weights(resumed), weights(undisturbed)), share
        assert capped.steps() == free.steps()
        assert capped.validations() == free.validations()


@pytest.mark.parametrize(("cap", "noise"), [("hours", 0.0), ("usd", 0.4), ("energy_kwh", 0.4)])
def test_it_ends_within_one_step_of_its_cap_on_either_side(world: Callable[..., World], cap: str, noise: float) -> None:
    a_second = {"hours": 1 / 3600, "usd": 3.6 / 3600, "energy_kwh": 0.2 / 3600}[cap]
    for seconds in range(12, 60, 9):
        capped = world(noise=noise)
        outcome, _, meter = capped.run(**{cap: seconds * a_second})
        assert outcome.status == "paused"
        spent, most = meter.spent.seconds, capped.longest_step + CHECKPOINT_SECONDS
        assert spent <= seconds + capped.longest_step
        # the longest step that could have come, a standard deviation of caution, and its checkpoint
        assert spent >= seconds - (1 + noise) * most - VALIDATION_SECONDS


def test_tokens_are_never_over_at_all(world: Callable[..., World]) -> None:
    sizes: list[int] = []
    free = world()
    free.run()
    for event in free.events:
        if isinstance(event, StepDone):
            sizes.append(event.num_tokens)
    for cap in nonempty(range(sizes[0], sum(sizes), 61)):
        fitting = max(n for n in range(len(sizes) + 1) if sum(sizes[:n]) <= cap)
        outcome, _, meter = world().run(tokens=cap)
        assert (outcome.state.step, meter.spent.tokens) == (fitting, sum(sizes[:fitting]))
        assert outcome.reason.startswith("budget of ")


def test_a_cap_that_is_not_met_changes_nothing(world: Callable[..., World]) -> None:
    free, capped = world(), world()
    (_, one, _), (outcome, other, _) = free.run(), capped.run(hours=1000.0, usd=1000.0, tokens=10**9, energy_kwh=1e3)
    assert (outcome.status, outcome.reason) == ("succeeded", "all 12 steps done")
    assert same(weights(one), weights(other))


def test_work_that_a_kill_threw_away_is_paid(world: Callable[..., World]) -> None:
    tried = world()
    with pytest.raises(KilledError):
        tried.run(kill_after=9)
    before = tried.clock.now - 1000.0
    tokens = sum(e.num_tokens for e in tried.events if isinstance(e, StepDone))
    meter = Meter(budget(), Ledger(tried.folder), clock=tried.clock)
    # killed at the very end of a step that took what was expected, give or take its spread
    assert meter.spent.seconds == pytest.approx(before, rel=0.02)
    assert meter.spent.tokens == tokens
    assert meter.spent.interrupted_seconds > 0
    outcome, _, _ = tried.run(hours=(before + 1.0) / 3600)
    assert outcome.status == "paused"
    saved = [event.step for event in tried.events if isinstance(event, CheckpointSaved)]
    assert outcome.state.step == saved[-1] < 9, "the last checkpoint before the kill; nothing was left for a step"


def test_kills_and_caps_together_end_with_the_same_bytes(world: Callable[..., World]) -> None:
    _, undisturbed, meter = world().run()
    whole = meter.spent.seconds
    tried = world()
    with pytest.raises(KilledError):
        tried.run(kill_after=2)
    tried.run(hours=0.6 * whole / 3600)
    with pytest.raises(KilledError):
        tried.run(hours=10 * whole / 3600, kill_after=11)
    outcome, resumed, _ = tried.run(hours=10 * whole / 3600)
    assert outcome.status == "succeeded"
    assert same(weights(resumed), weights(undisturbed))


def test_without_its_ledger_a_resumed_run_warns_and_counts_what_survived(world: Callable[..., World]) -> None:
    tried = world()
    first, _, _ = tried.run(tokens=300)
    (tried.folder / LEDGER).unlink()
    outcome, _, meter = tried.run(tokens=300)
    assert [e.code for e in tried.events if isinstance(e, WarningRaised)] == ["ledger_lost"]
    assert (outcome.status, outcome.state.step) == ("paused", first.state.step)
    assert meter.spent.tokens == first.state.num_tokens


def test_the_expected_end_closes_in_on_the_true_end(world: Callable[..., World]) -> None:
    run = world(noise=0.1)
    _, _, meter = run.run()
    bills = [e.bill for e in run.events if isinstance(e, BillUpdated)]
    assert [e.step for e in run.events if isinstance(e, BillUpdated)] == list(range(1, 13))
    end = meter.spent.seconds / 3600
    for bill in nonempty(bills[4:]):
        assert bill.final_hours.value == pytest.approx(end, rel=0.12)
        assert bill.final_hours.low <= end * 1.02
        assert bill.final_hours.high >= end * 0.98
    hours: Sequence[float] = [bill.hours for bill in bills]
    assert list(hours) == sorted(hours)


def test_examples_are_those_of_the_plan(world: Callable[..., World]) -> None:
    """The tests above count tokens as the loop does: those of the examples of a step, without padding."""
    run = world()
    outcome, _, meter = run.run()
    examples: list[TokenisedExample] = run.examples
    assert meter.spent.tokens == outcome.state.num_tokens == 2 * sum(e.num_tokens for e in examples)
