"""Muon: matrices of the layers move along the polar factor of their momentum, at AdamW's size; the rest by AdamW."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.vacuous import nonempty

from luthier.core.plan import OptimizerPlan, Plan
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.optimizer import MasterOptimizer

MUON = OptimizerPlan(name="muon", momentum=0.95, num_iterations=5)


@pytest.mark.parametrize("factor", [None, 0.2])
def test_each_parameter_moves_as_it_should(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], factor: float | None
) -> None:
    """The second rate is that of what AdamW updates; a plan without one, as before, has one rate for both."""
    muon = MUON.model_copy(update={"adamw_rate_factor": factor})
    plan = make_plan("full", learning_rate=1e-2, clip_gradient_norm=1e30, optimizer=muon)
    optimizer = MasterOptimizer(make_model(plan).module, plan.training)
    draw = torch.Generator().manual_seed(0)
    before = {name: master.clone() for name, master in optimizer.weight_state().items()}
    slopes = {}
    for name, gradient in optimizer.gradient_state().items():
        slopes[name] = gradient.normal_(generator=draw).clone()
    optimizer.step(0.0, 1.0)
    num_matrices = 0
    for name, now in nonempty(optimizer.weight_state().items()):
        moved = (before[name] - now) / 1e-2
        if "layers." in name and now.dim() == 2:
            num_matrices += 1
            left, _, right = torch.linalg.svd(slopes[name], full_matrices=False)
            size = 0.2 * max(now.shape) ** 0.5
            # five iterations bring singular values near one, not to it (0.68 to 1.13, where they were not tiny)
            values = torch.linalg.svdvals(moved / size)
            assert values.max() < 1.3
            assert values.median() > 0.6
            polar = left @ right
            assert (moved * polar).sum() / moved.norm() / polar.norm() > 0.95
        else:  # AdamW's first step has the size of its rate in each entry
            wanted = slopes[name].sign() * (1.0 if factor is None else factor)
            torch.testing.assert_close(moved, wanted, rtol=1e-3, atol=1e-3)
    assert num_matrices == 2 * 7
    remembered = optimizer.moment_state()
    assert sum(name.startswith("momentum.") for name in remembered) == num_matrices
    assert "second.model.embed_tokens.weight" in remembered
