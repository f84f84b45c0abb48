"""Schedule-free AdamW: the three sequences of the paper, by hand; the average is validated, kept and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.ml.training.test_loop import KilledError, run, weights
from tests.ml.training.test_loop_regularised import validation_loss
from tests.vacuous import nonempty
from torch import Tensor, nn

from luthier.core.dataset import TokenisedExample
from luthier.core.events import StepDone, ValidationDone
from luthier.core.plan import OptimizerPlan, Plan
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.ml.training.fit import for_unstable
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.optimizer import MasterOptimizer, WeightAverage
from luthier.ml.training.optimizers.protocol import load_rule

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
PLAN = OptimizerPlan(name="schedule_free_adamw", beta1=0.8, beta2=0.9, epsilon=1e-6)
DECAY, RATE = 0.1, 1e-2


def small(make_plan: MakePlan, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, MasterOptimizer]:
    plan = make_plan(learning_rate=RATE, weight_decay=DECAY, clip_gradient_norm=0.0, optimizer=PLAN).training
    torch.manual_seed(0)
    module = nn.Linear(5, 3).to(dtype)
    return module, MasterOptimizer(module, plan)


def by_hand(start: Tensor, gradients: list[Tensor], factors: list[float], decay: float) -> tuple[Tensor, Tensor]:
    """y and x after these steps, each sequence by its own recurrence (arXiv:2405.15682, algorithm 1)."""
    x, z, second = start.clone(), start.clone(), torch.zeros_like(start)
    beta1, beta2 = PLAN.beta1, PLAN.beta2
    largest, total = 0.0, 0.0
    for step, (gradient, factor) in enumerate(zip(gradients, factors, strict=True), start=1):
        y = (1 - beta1) * z + beta1 * x
        second = beta2 * second + (1 - beta2) * gradient**2
        unbiased = second / (1 - beta2**step)
        rate = RATE * factor
        z = z - rate * (gradient / (unbiased.sqrt() + PLAN.epsilon) + decay * y)
        largest = max(largest, rate)
        total += largest**2
        c = largest**2 / total
        x = (1 - c) * x + c * z
    return (1 - beta1) * z + beta1 * x, x


@pytest.mark.parametrize("factors", [[1.0] * 6, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0], [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]])
def test_weights_and_averages_are_those_of_the_papers_sequences(make_plan: MakePlan, factors: list[float]) -> None:
    _, optimizer = small(make_plan)
    starts = [master.detach().clone() for master in optimizer.masters]
    generator = torch.Generator().manual_seed(1)
    drawn = [[torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in starts] for _ in factors]
    for factor, gradients in zip(factors, drawn, strict=True):
        for place, gradient in enumerate(gradients):
            optimizer.gradients[place].copy_(gradient)
        optimizer.step(1.0, factor)
    averages = dict(optimizer.averages())
    for place, (name, start) in nonempty(enumerate(zip(optimizer.names, starts, strict=True))):
        y, x = by_hand(start, [one[place] for one in drawn], factors, DECAY if start.dim() == 2 else 0.0)
        torch.testing.assert_close(optimizer.masters[place].detach(), y, rtol=0, atol=1e-14)
        torch.testing.assert_close(averages[name], x, rtol=0, atol=1e-14)
        assert not torch.equal(x, y)


def test_at_a_constant_rate_the_average_is_the_plain_mean_of_the_steps(make_plan: MakePlan) -> None:
    _, optimizer = small(make_plan)
    seen: list[Tensor] = []
    for _ in range(5):
        for gradient in optimizer.gradients:
            gradient.normal_(generator=torch.Generator().manual_seed(len(seen)))
        optimizer.step(1.0, 1.0)
        seen.append(optimizer.moment_state()["steps.weight"].clone())
    torch.testing.assert_close(dict(optimizer.averages())["weight"], torch.stack(seen).mean(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_shows_the_average_and_gets_its_weights_back(make_plan: MakePlan, dtype: torch.dtype) -> None:
    module, optimizer = small(make_plan, dtype)
    average = WeightAverage(None, optimizer.averages)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    with average.shown_in(module):  # before the first step there is none
        assert all(torch.equal(p, start[name]) for name, p in nonempty(module.named_parameters()))
    for _ in range(3):
        for gradient in optimizer.gradients:
            gradient.normal_()
        optimizer.step(1.0, 1.0)
    own = {name: p.detach().clone() for name, p in module.named_parameters()}
    masters = [master.detach().clone() for master in optimizer.masters]
    averages = dict(optimizer.averages())
    with average.shown_in(module):
        for name, p in nonempty(module.named_parameters()):
            assert torch.equal(p.detach(), averages[name].to(dtype)), name
    assert all(torch.equal(p, own[name]) for name, p in nonempty(module.named_parameters()))
    assert all(torch.equal(a, b) for a, b in nonempty(zip(optimizer.masters, masters, strict=True)))


@pytest.mark.parametrize(("method", "precision"), [("lora", "bfloat16"), ("full", "float32")])
@pytest.mark.parametrize("with_validation", [True, False])
def test_what_is_validated_and_kept_is_the_average_of_the_best_or_of_the_last_step(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, method: str,
    precision: str, with_validation: bool,
) -> None:  # fmt: skip
    # A rate at which the validation gets worse before the end, so that the best step is an earlier one.
    rate = 0.5 if method == "lora" else 0.05
    plan = make_plan(
        method, precision=precision, learning_rate=rate, schedule="constant", optimizer=PLAN, keep_checkpoints=6,
        validate_every_steps=1, checkpoint_every_steps=1,
    )  # fmt: skip
    model = make_model(plan)
    outcome, events = run(plan, model, tmp_path, examples, with_validation=with_validation)
    validations = {e.step: e.loss for e in events if isinstance(e, ValidationDone)}
    best = min(validations, key=lambda step: validations[step]) if with_validation else 6
    assert outcome.state.early_stopping.best_step == best or not with_validation
    checkpoint = CheckpointStore(tmp_path, 6).load(best)
    for name, kept in nonempty(weights(model).items()):
        y, z = checkpoint.weights[name], checkpoint.moments[f"steps.{name}"]
        x = (y.double() - (1 - PLAN.beta1) * z.double()) / PLAN.beta1
        torch.testing.assert_close(kept.double(), x, rtol=1e-2 if kept.dtype == torch.bfloat16 else 1e-5, atol=1e-6)
        assert not torch.equal(kept.float(), y) or best == 1
    if with_validation:
        assert validation_loss(model) == pytest.approx(validations[best], rel=1e-4)


@pytest.mark.parametrize("kill_at", [1, 4, 6])
def test_killed_and_resumed_validates_and_keeps_the_same_average(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, kill_at: int
) -> None:
    plan = make_plan(
        "lora", precision="bfloat16", schedule="constant", optimizer=PLAN, checkpoint_every_steps=2,
        validate_every_steps=2, num_warmup_steps=2,
    )  # fmt: skip
    whole = make_model(plan)
    _, events = run(plan, whole, tmp_path / "a", examples)
    with pytest.raises(KilledError):
        run(plan, make_model(plan), tmp_path / "b", examples, kill_at=kill_at)
    resumed = make_model(plan)
    _, later = run(plan, resumed, tmp_path / "b", examples)
    for kind in (StepDone, ValidationDone):
        losses = [e.loss for e in later if isinstance(e, kind)]
        assert losses == [e.loss for e in events if isinstance(e, kind)][-len(losses) :]
    for name, expected in nonempty(weights(whole).items()):
        assert torch.equal(weights(resumed)[name], expected), name


def test_a_state_is_read_without_the_run_that_wrote_it(make_plan: MakePlan) -> None:
    _, optimizer = small(make_plan)
    for _ in range(3):
        for gradient in optimizer.gradients:
            gradient.fill_(0.5)
        optimizer.step(1.0, 1.0)
    rule = load_rule(optimizer.rule.trained, PLAN)  # type: ignore[attr-defined]
    rule.load(optimizer.moment_state(), 3)
    assert rule.state().keys() == optimizer.moment_state().keys()
    for name, part in nonempty(rule.state().items()):
        assert torch.equal(part, optimizer.moment_state()[name]), name


def test_no_second_average_and_no_falling_rate_is_advised(make_plan: MakePlan) -> None:
    def advised(name: str) -> str:
        plan = make_plan("lora", schedule="constant", optimizer=OptimizerPlan(name=name))
        return " ".join(setting for remedy in for_unstable(plan) for setting in remedy.settings)

    assert "lr_schedule" in advised("adamw")
    assert "average" in advised("adamw")
    assert "lr_schedule" not in advised("schedule_free_adamw")
    assert "average" not in advised("schedule_free_adamw")
