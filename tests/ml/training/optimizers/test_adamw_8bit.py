"""AdamW in eight bits: close to AdamW in 32, in a quarter of the room, the same with its moments elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.vacuous import nonempty
from torch import Tensor, nn

from luthier.core.plan import OptimizerPlan, Plan
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.optimizer import MasterOptimizer
from luthier.ml.training.optimizers import update_rules

MakePlan = Callable[..., Plan]


def trained(
    make_plan: MakePlan, name: str, *, num_steps: int, spread: float, seed: int = 0
) -> tuple[MasterOptimizer, Tensor]:
    """A noisy least-squares problem whose gradients differ in size from number to number by exp(spread * normal)."""
    plan = make_plan(
        learning_rate=1e-2, clip_gradient_norm=1e30, optimizer=OptimizerPlan.model_validate({"name": name})
    ).training
    draw = torch.Generator().manual_seed(0)
    module = nn.Linear(300, 300, bias=False)
    nn.init.zeros_(module.weight)
    optimizer = MasterOptimizer(module, plan)
    sizes, goal = (spread * torch.randn(300, 300, generator=draw)).exp(), torch.randn(300, 300, generator=draw)
    draw.manual_seed(seed + 1)
    for _ in range(num_steps):
        noise = torch.randn(300, 300, generator=draw)
        optimizer.gradients[0].copy_(sizes * (optimizer.masters[0].detach() - goal + 0.5 * noise))
        optimizer.step(0.0, 1.0)
    return optimizer, optimizer.masters[0].detach()


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_it_follows_adamw_closer_than_another_order_of_the_rows_does(make_plan: MakePlan, spread: float) -> None:
    _, wide = trained(make_plan, "adamw", num_steps=200, spread=spread)
    _, other = trained(make_plan, "adamw", num_steps=200, spread=spread, seed=1)
    _, packed = trained(make_plan, "adamw_8bit", num_steps=200, spread=spread)
    assert 0 < (packed - wide).norm() < (other - wide).norm()


def test_the_first_step_is_adamws_to_the_bit_of_the_moments(make_plan: MakePlan) -> None:
    _, wide = trained(make_plan, "adamw", num_steps=1, spread=1.0)
    _, packed = trained(make_plan, "adamw_8bit", num_steps=1, spread=1.0)
    torch.testing.assert_close(packed, wide, rtol=1e-5, atol=1e-9)


def test_moments_take_a_quarter_of_the_room(make_plan: MakePlan) -> None:
    sizes = {}
    for name in ("adamw", "adamw_8bit"):
        optimizer, _ = trained(make_plan, name, num_steps=1, spread=0.0)
        sizes[name] = sum(moment.nbytes for moment in optimizer.moment_state().values())
    num_blocks = -(-300 * 300 // 256)
    assert sizes["adamw"] == 8 * 300 * 300
    assert sizes["adamw_8bit"] == num_blocks * (2 * 256 + 2 * 4)


def test_paged_makes_the_same_steps(make_plan: MakePlan) -> None:
    _, here = trained(make_plan, "adamw_8bit", num_steps=3, spread=1.0)
    _, paged = trained(make_plan, "paged_adamw_8bit", num_steps=3, spread=1.0)
    assert torch.equal(here, paged)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_paged_moments_lie_in_the_hosts_memory(make_plan: MakePlan) -> None:
    optimizer = MasterOptimizer(
        nn.Linear(300, 300, device="cuda"), make_plan(optimizer=OptimizerPlan(name="paged_adamw_8bit")).training
    )
    optimizer.step(0.0, 1.0)
    found = optimizer.moment_state()
    assert found["first.weight"].is_pinned()
    assert found["first.bias"].is_cuda  # too small to be packed


def test_embeddings_and_small_parameters_keep_32_bits(
    make_plan: MakePlan, make_model: Callable[..., TrainableModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_rules, "MIN_PACKED", 500)
    plan = make_plan("full", optimizer=OptimizerPlan(name="adamw_8bit"))
    optimizer = MasterOptimizer(make_model(plan).module, plan.training)
    optimizer.step(0.0, 1.0)
    found = optimizer.moment_state()
    wide = {name for name in optimizer.names if f"second.{name}" in found}
    assert "model.embed_tokens.weight" in wide
    for name, master in nonempty(optimizer.weight_state().items()):
        assert (name in wide) == (master.numel() < 500 or "embed_tokens" in name)
        assert (found[f"first.{name}"].dtype == torch.uint8) == (name not in wide)
    assert len(wide) < len(optimizer.names)
