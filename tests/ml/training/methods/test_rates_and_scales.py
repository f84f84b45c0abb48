"""LoRA+ and rsLoRA are LoRA but for a rate and a scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from luthier.core.plan import Plan
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.optimizer import MasterOptimizer

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]


def test_b_moves_faster_by_the_ratio(make_plan: MakePlan, make_model: MakeModel) -> None:
    plan = make_plan("loraplus", settings={"learning_rate_ratio": 8.0}, clip_gradient_norm=1e9, learning_rate=1e-3)
    model = make_model(plan, torch.float64)
    optimizer = MasterOptimizer(model.module, plan.training, model.method.rate_factor)
    before = {name: w.clone() for name, w in optimizer.weight_state().items()}
    for gradient in optimizer.gradients:
        gradient.fill_(1.0)
    assert optimizer.step(1.0, 1.0) == 1e-3
    # Adam's first step is its rate in each entry, whatever the gradient's size
    for name, weight in optimizer.weight_state().items():
        expected = 8e-3 if ".lora_B." in name else 1e-3
        torch.testing.assert_close(before[name] - weight, torch.full_like(weight, expected), rtol=1e-6, atol=0)


def test_the_scale_falls_with_the_square_root_of_the_rank(make_plan: MakePlan, make_model: MakeModel) -> None:
    for rank in (2, 8):
        model = make_model(make_plan("rslora", settings={"rank": rank, "alpha": 6.0}))
        scales = {m.forward.scale for m in model.module.modules() if hasattr(m, "lora_A")}
        assert scales == {6.0 / math.sqrt(rank)}
