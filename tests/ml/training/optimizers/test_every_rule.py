"""What every update rule keeps: it learns, resumes to the bit, spares vectors from decay and heeds rate factors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.ml.training.test_loop import KilledError, run, weights
from tests.vacuous import nonempty
from torch import nn

from luthier.core.dataset import TokenisedExample
from luthier.core.events import StepDone
from luthier.core.plan import OptimizerPlan, Plan
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.optimizer import MasterOptimizer
from luthier.ml.training.optimizers import update_rules
from luthier.ml.training.optimizers.rules import RULES

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
EVERY_RULE = pytest.mark.parametrize("name", list(RULES))


def optimizer_plan(name: str) -> OptimizerPlan:
    return OptimizerPlan.model_validate({"name": name} | dict(RULES[name].settings))


@EVERY_RULE
def test_killed_and_resumed_ends_byte_for_byte_the_same(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(update_rules, "MIN_PACKED", 60)  # the matrices of a tiny model are small
    method = "full" if RULES[name].only_full else "lora"
    settings = {"rank": 16, "targets": "all-linear"} if method == "lora" else {}
    plan = make_plan(
        method, settings=settings, precision="bfloat16", optimizer=optimizer_plan(name), checkpoint_every_steps=3,
        validate_every_steps=3,
    )  # fmt: skip
    whole = make_model(plan)
    run(plan, whole, tmp_path / "a", examples)
    with pytest.raises(KilledError):
        run(plan, make_model(plan), tmp_path / "b", examples, kill_at=4)
    checkpoint, _ = CheckpointStore(tmp_path / "b", 2).latest()
    assert checkpoint is not None
    assert any(part.dtype == torch.uint8 for part in checkpoint.moments.values()) == ("8bit" in name)
    resumed = make_model(plan)
    _, events = run(plan, resumed, tmp_path / "b", examples)
    assert [e.step for e in events if isinstance(e, StepDone)] == [4, 5, 6]
    for key, expected in nonempty(weights(whole).items()):
        assert torch.equal(weights(resumed)[key], expected), key


@EVERY_RULE
def test_it_learns(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, name: str
) -> None:
    plan = make_plan("full", num_steps=40, learning_rate=5e-3, validate_every_steps=40, optimizer=optimizer_plan(name))
    _, events = run(plan, make_model(plan), tmp_path, examples, with_validation=False)
    losses = [e.loss for e in events if isinstance(e, StepDone)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@EVERY_RULE
def test_decay_spares_vectors_and_shrinks_matrices_by_rate_times_decay(make_plan: MakePlan, name: str) -> None:
    plan = make_plan(weight_decay=0.1, learning_rate=1e-2, optimizer=optimizer_plan(name)).training
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(80, 64), nn.LayerNorm(64))
    before = {key: p.detach().clone() for key, p in module.named_parameters()}
    optimizer = MasterOptimizer(module, plan)
    optimizer.step(0.0, 1.0)  # a gradient of zero: nothing but decay
    for key, now in module.named_parameters():
        kept = 1 - 1e-2 * 0.1 if now.dim() == 2 else 1.0
        torch.testing.assert_close(now.detach(), before[key] * kept, rtol=1e-6, atol=0)


@EVERY_RULE
def test_a_rate_factor_multiplies_the_first_step(make_plan: MakePlan, name: str) -> None:
    plan = make_plan(learning_rate=1e-3, optimizer=optimizer_plan(name)).training

    def moved(factor: float) -> list[torch.Tensor]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(80, 64), nn.LayerNorm(64))
        optimizer = MasterOptimizer(module, plan, lambda key: factor if key == "0.weight" else 1.0)
        before = [master.detach().clone() for master in optimizer.masters]
        for gradient in optimizer.gradients:
            gradient.normal_(generator=torch.Generator().manual_seed(1))
        optimizer.step(1.0, 1.0)
        return [old - new.detach() for old, new in zip(before, optimizer.masters, strict=True)]

    for place, (plain, faster) in enumerate(zip(moved(1.0), moved(3.0), strict=True)):
        torch.testing.assert_close(faster, plain * (3.0 if place == 0 else 1.0), rtol=1e-3, atol=1e-7)


def two_matrices(dtype: torch.dtype) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(80, 64, bias=False) for name in ("used", "late")}).to(dtype)


def step_on(module: nn.ModuleDict, optimizer: MasterOptimizer, *names: str) -> None:
    """A step whose loss reaches the named matrices, clipped by nothing."""
    x = torch.randn(8, 80, generator=torch.Generator().manual_seed(1)).to(module["used"].weight.dtype)
    torch.stack([module[name](x).square().sum() for name in names]).sum().backward()
    optimizer.collect()
    optimizer.find_unreached()
    optimizer.step(0.0, 1.0)


@EVERY_RULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_without_gradient_keeps_its_bytes_and_then_begins_as_in_a_new_run(
    make_plan: MakePlan, name: str, dtype: torch.dtype
) -> None:
    plan = make_plan(weight_decay=0.1, learning_rate=1e-2, optimizer=optimizer_plan(name)).training
    module, fresh = two_matrices(dtype), two_matrices(dtype)
    before = module["late"].weight.detach().clone()
    optimizer = MasterOptimizer(module, plan)
    for _ in range(3):
        step_on(module, optimizer, "used")
        assert torch.equal(module["late"].weight, before)
        assert optimizer.unreached() == {"late.weight": 80 * 64}
    assert not torch.equal(module["used"].weight, fresh["used"].weight)
    first = MasterOptimizer(fresh, plan)
    step_on(fresh, first, "late")
    step_on(module, optimizer, "used", "late")
    assert not torch.equal(module["late"].weight, before)
    assert torch.equal(module["late"].weight, fresh["late"].weight)
    assert optimizer.unreached() == {}


@EVERY_RULE
@pytest.mark.parametrize("reached", [("used",), ("used", "late")])
def test_a_late_first_gradient_resumes_to_the_bit(make_plan: MakePlan, name: str, reached: tuple[str, ...]) -> None:
    plan = make_plan(weight_decay=0.1, learning_rate=1e-2, optimizer=optimizer_plan(name)).training
    module, other = two_matrices(torch.float32), two_matrices(torch.float32)
    optimizer = MasterOptimizer(module, plan)
    step_on(module, optimizer, "used")
    step_on(module, optimizer, *reached)
    weights = {key: weight.clone() for key, weight in optimizer.weight_state().items()}
    moments = {key: moment.clone() for key, moment in optimizer.moment_state().items()}
    resumed = MasterOptimizer(other, plan)
    resumed.load(weights, moments, 2)
    assert resumed.unreached() == optimizer.unreached()
    for _ in range(2):
        step_on(module, optimizer, "used", "late")
        step_on(other, resumed, "used", "late")
    for key, expected in nonempty(optimizer.weight_state().items()):
        assert torch.equal(resumed.weight_state()[key], expected), key
    for key, moment in nonempty(optimizer.moment_state().items()):
        assert torch.equal(resumed.moment_state()[key], moment), key


@EVERY_RULE
def test_nothing_is_remembered_before_the_first_step(make_plan: MakePlan, name: str) -> None:
    optimizer = MasterOptimizer(nn.Linear(80, 64), make_plan(optimizer=optimizer_plan(name)).training)
    assert optimizer.moment_state() == {}
    optimizer.step(1.0, 1.0)
    assert optimizer.moment_state()
