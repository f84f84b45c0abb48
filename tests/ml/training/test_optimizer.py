"""AdamW on master copies: equal to torch's own in fp32, and better than bf16 alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.vacuous import nonempty
from torch import nn

from luthier.core.plan import Plan
from luthier.ml.training.distributed import World
from luthier.ml.training.optimizer import MasterOptimizer
from luthier.testing.world import in_world


def small_module(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).to(dtype)


def test_equals_torch_adamw_with_clipping(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(weight_decay=0.1).training
    ours, theirs = small_module(torch.float64), small_module(torch.float64)
    optimizer = MasterOptimizer(ours, plan)
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=plan.learning_rate
    )
    x = torch.randn(5, 4, dtype=torch.float64)
    for _ in range(5):
        (ours(x) * 9).square().sum().backward()
        optimizer.collect()
        optimizer.step(optimizer.gradient_norm(), 1.0)
        reference.zero_grad()
        (theirs(x) * 9).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), plan.clip_gradient_norm)
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_what_torch_leaves_out_is_left_out_and_a_gradient_of_zeros_is_a_gradient(
    make_plan: Callable[..., Plan],
) -> None:
    """torch's AdamW skips a parameter whose `.grad` is None, and shrinks one whose gradient is 0."""
    plan = make_plan(weight_decay=0.1).training
    ours, theirs = (nn.ModuleList([nn.Linear(4, 3, bias=False) for _ in range(3)]).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = MasterOptimizer(ours, plan)
    reference = torch.optim.AdamW(theirs.parameters(), lr=plan.learning_rate, weight_decay=0.1)
    x = torch.randn(5, 4, dtype=torch.float64)
    before = [weight.clone() for weight in ours.parameters()]
    for step in range(4):
        # The second is reached from the third step on; the third has a gradient of zeros.
        reached = [0, 2] if step < 2 else [0, 1, 2]
        for module in (ours, theirs):
            torch.stack([(module[i](x) * (i != 2)).sum() for i in reached]).sum().backward()
        optimizer.collect()
        optimizer.find_unreached()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), plan.clip_gradient_norm)
        optimizer.step(optimizer.gradient_norm(), 1.0)
        reference.step()
        reference.zero_grad()
        assert torch.equal(ours[1].weight, before[1]) == (step < 2)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other)
    assert not torch.equal(ours[2].weight, before[2])


def reached_by_ranks(world: World, plan: Plan) -> list[str]:
    module = nn.ModuleList([nn.Linear(4, 3, bias=False) for _ in range(3)])
    optimizer = MasterOptimizer(module, plan.training)
    x = torch.ones(2, 4)
    torch.stack([module[i](x).sum() for i in range(1 + world.rank)]).sum().backward()
    optimizer.collect()
    optimizer.find_unreached(world)
    world.sum_gradients(optimizer.gradients)
    optimizer.step(0.0, 1.0)
    return list(optimizer.unreached())


def test_a_weight_that_one_rank_reaches_is_updated_on_all(make_plan: Callable[..., Plan]) -> None:
    ended = in_world(2, reached_by_ranks, make_plan())
    assert [e.error for e in ended] == ["", ""]
    assert [e.value for e in ended] == [["2.weight"], ["2.weight"]]


def test_decay_shrinks_a_weight_by_its_rate_whatever_its_gradient(make_plan: Callable[..., Plan]) -> None:
    """Decoupled decay (Loshchilov & Hutter, 2019): with a gradient of 0 a weight falls by rate x decay of itself."""
    plan = make_plan(weight_decay=0.1, learning_rate=0.01).training
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 2.0)
    optimizer = MasterOptimizer(module, plan)
    optimizer.step(optimizer.gradient_norm(), 0.5)
    assert float(module.weight.detach()) == pytest.approx(2.0 * (1 - 0.005 * 0.1), rel=1e-6)


def test_clipping_scales_all_gradients_alike_and_only_above_the_norm(make_plan: Callable[..., Plan]) -> None:
    """By hand: gradients (3, 4) have the norm 5; clipped to 1 they are (0.6, 0.8), by 10 and by 0 they stay."""
    for clip, wanted in ((1.0, (0.6, 0.8)), (10.0, (3.0, 4.0)), (0.0, (3.0, 4.0))):
        module = nn.ParameterList([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))])
        optimizer = MasterOptimizer(module, make_plan(clip_gradient_norm=clip).training)
        (3 * module[0] + 4 * module[1]).sum().backward()
        optimizer.collect()
        seen: list[float] = []
        norm = optimizer.gradient_norm()
        assert norm == pytest.approx(5.0)
        optimizer.step(norm, 1.0, lambda _, gradients, seen=seen: seen.extend(float(g) for g in gradients.values()))
        assert seen == pytest.approx(wanted)


def test_small_steps_are_not_lost_in_bfloat16(make_plan: Callable[..., Plan]) -> None:
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(module.weight)
    optimizer = MasterOptimizer(module, make_plan(learning_rate=1e-4).training)
    for _ in range(100):  # each step is far below bf16's spacing of 2^-8 at 1
        module(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.collect()
        optimizer.step(optimizer.gradient_norm(), 1.0)
    assert abs(float(optimizer.masters[0].detach()) - 0.99) < 1e-4
    assert float(module.weight.detach()) == float(torch.tensor(0.99).to(torch.bfloat16))


def test_state_carries_over_exactly(make_plan: Callable[..., Plan]) -> None:
    plan, x = make_plan().training, torch.randn(5, 4)

    def step(module: nn.Module, optimizer: MasterOptimizer) -> None:
        module(x.to(torch.bfloat16)).square().sum().backward()
        optimizer.collect()
        optimizer.step(optimizer.gradient_norm(), 0.5)

    first = small_module(torch.bfloat16)
    optimizer = MasterOptimizer(first, plan)
    step(first, optimizer)
    weights = {k: v.clone() for k, v in optimizer.weight_state().items()}
    moments = {k: v.clone() for k, v in optimizer.moment_state().items()}
    second = small_module(torch.bfloat16)
    resumed = MasterOptimizer(second, plan)
    resumed.load(weights, moments, 1)
    step(first, optimizer)
    step(second, resumed)
    for one, other in nonempty(zip(optimizer.masters, resumed.masters, strict=True)):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("dtype", "is_copied"), [(torch.float32, False), (torch.float64, False), (torch.bfloat16, True)]
)
def test_weights_as_wide_as_masters_are_held_once_and_their_gradients_too(
    dtype: torch.dtype, is_copied: bool, make_plan: Callable[..., Plan]
) -> None:
    module, x = small_module(dtype), torch.randn(5, 4).to(dtype)
    optimizer = MasterOptimizer(module, make_plan().training)
    for weight, master in nonempty(zip(optimizer.weights, optimizer.masters, strict=True)):
        assert (weight.data_ptr() != master.data_ptr()) == is_copied
    for _ in range(2):  # micro-batches of one step
        module(x).square().sum().backward()
        optimizer.collect()
    for weight, gradient in nonempty(zip(optimizer.weights, optimizer.gradients, strict=True)):
        assert weight.grad is (None if is_copied else gradient)
    plain = small_module(dtype)
    plain(x).square().sum().backward()
    for gradient, weight in nonempty(zip(optimizer.gradients, plain.parameters(), strict=True)):
        assert weight.grad is not None
        assert torch.equal(gradient, 2 * weight.grad.to(gradient.dtype))
    optimizer.step(optimizer.gradient_norm(), 1.0)
    assert not any(gradient.any() for gradient in nonempty(optimizer.gradients))
    for weight, master in nonempty(zip(optimizer.weights, optimizer.masters, strict=True)):
        assert torch.equal(weight, master.to(dtype))
    optimizer.release_gradients()
    assert all(weight.grad is None for weight in nonempty(optimizer.weights))


def test_weights_that_were_moved_to_other_memory_still_follow_their_masters(make_plan: Callable[..., Plan]) -> None:
    """As workers of micro-batches move them into memory that they share: no gradient of theirs is a sum any more."""
    module, x = small_module(torch.float32), torch.randn(5, 4)
    optimizer = MasterOptimizer(module, make_plan(learning_rate=0.1).training)
    for weight in nonempty(optimizer.weights):
        weight.data, weight.grad = weight.data.clone(), None
    before = [weight.detach().clone() for weight in optimizer.weights]
    module(x).square().sum().backward()
    optimizer.collect()
    assert all(weight.grad is None for weight in nonempty(optimizer.weights))
    optimizer.step(optimizer.gradient_norm(), 1.0)
    for weight, master, old in nonempty(zip(optimizer.weights, optimizer.masters, before, strict=True)):
        assert weight.data_ptr() != master.data_ptr()
        assert torch.equal(weight, master)
        assert not torch.equal(weight, old)
