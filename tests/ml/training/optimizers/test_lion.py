"""Lion: the algorithm of the paper, by hand; every weight moves by the rate; one moment a parameter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from luthier.core.plan import OptimizerPlan, Plan
from luthier.core.recipe import Recipe
from luthier.ml.planning.learning_rates import default_rate
from luthier.ml.training.optimizer import MasterOptimizer
from luthier.ml.training.optimizers.rules import RULES

MakePlan = Callable[..., Plan]
LION = OptimizerPlan(name="lion", beta1=0.9, beta2=0.99)


def make(make_plan: MakePlan, weight_decay: float = 0.1) -> MasterOptimizer:
    plan = make_plan(learning_rate=1e-2, weight_decay=weight_decay, clip_gradient_norm=1e30, optimizer=LION).training
    torch.manual_seed(0)
    return MasterOptimizer(nn.Linear(5, 3), plan)


def test_three_steps_are_those_of_the_paper(make_plan: MakePlan) -> None:
    optimizer = make(make_plan)
    weights = [master.detach().double() for master in optimizer.masters]
    momenta = [torch.zeros_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        drawn = [torch.randn(weight.shape, generator=generator) for weight in weights]
        for place, gradient in enumerate(drawn):
            optimizer.gradients[place].copy_(gradient)
            g, decay = gradient.double(), 0.1 if gradient.dim() == 2 else 0.0
            step = torch.sign(0.9 * momenta[place] + 0.1 * g) + decay * weights[place]
            weights[place] = weights[place] - 1e-2 * step
            momenta[place] = 0.99 * momenta[place] + 0.01 * g
        optimizer.step(1.0, 1.0)
    for master, expected in zip(optimizer.masters, weights, strict=True):
        torch.testing.assert_close(master.detach().double(), expected, rtol=0, atol=1e-6)


def test_every_weight_with_a_gradient_moves_by_the_rate(make_plan: MakePlan) -> None:
    optimizer = make(make_plan, weight_decay=0.0)
    before = [master.detach().clone() for master in optimizer.masters]
    for size, gradient in enumerate(optimizer.gradients):
        gradient.fill_(10.0 ** -(4 * size))
    optimizer.step(1.0, 1.0)
    for old, new in zip(before, optimizer.masters, strict=True):
        torch.testing.assert_close(old - new.detach(), torch.full_like(old, 1e-2), rtol=1e-4, atol=0)


def test_half_of_adamws_moments_are_held_and_a_fifth_of_its_rate_is_taken(make_plan: MakePlan) -> None:
    optimizer = make(make_plan)
    optimizer.step(1.0, 1.0)
    held = sum(part.nbytes for part in optimizer.moment_state().values())
    assert held == 4 * (5 * 3 + 3)
    lion, adamw = (default_rate("full", "sft", 576, name) for name in ("lion", "adamw"))
    assert lion[0] == pytest.approx(adamw[0] / 5)
    assert "Lion" in lion[1]


def test_a_recipe_may_name_it() -> None:
    asked = {"base_model": "m", "data": {"train": "x"}, "training": {"optimizer": "lion"}}
    training = Recipe.model_validate(asked).training
    assert training is not None
    assert training.optimizer is not None
    assert RULES[training.optimizer.name].title == "Lion"
