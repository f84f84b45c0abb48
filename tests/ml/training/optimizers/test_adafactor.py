"""Adafactor: the formula of the paper, computed another way; rows and columns in place of a matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from luthier.core.plan import OptimizerPlan, Plan
from luthier.ml.training.optimizer import MasterOptimizer

MakePlan = Callable[..., Plan]


def test_it_is_the_formula_of_the_paper(make_plan: MakePlan) -> None:
    plan = make_plan(learning_rate=1e-2, clip_gradient_norm=1e30, optimizer=OptimizerPlan(name="adafactor")).training
    module = nn.Linear(5, 3).double()
    optimizer = MasterOptimizer(module, plan)
    matrix, vector = (p.detach().numpy().copy() for p in (module.weight, module.bias))
    rows, columns, second = np.zeros(3), np.zeros(5), np.zeros(3)
    draw = np.random.default_rng(0)
    for step in range(1, 5):
        slope, flat = draw.normal(size=(3, 5)) * 3, draw.normal(size=3)
        for gradient, given in zip(optimizer.gradients, (slope, flat), strict=True):
            gradient.copy_(torch.from_numpy(given))
        optimizer.step(0.0, 1.0)
        # algorithm 4 with sums, beta2 of section 7.2, clipping of section 6
        keep = 1 - step**-0.8
        rows = keep * rows + (1 - keep) * (slope**2).sum(1)
        columns = keep * columns + (1 - keep) * (slope**2).sum(0)
        second = keep * second + (1 - keep) * flat**2
        for weight, update in (
            (matrix, slope / np.sqrt(np.outer(rows, columns) / rows.sum())),
            (vector, flat / np.sqrt(second)),
        ):
            weight -= 1e-2 * update / max(1.0, np.sqrt((update**2).mean()))
    np.testing.assert_allclose(module.weight.detach().numpy(), matrix, rtol=1e-10)
    np.testing.assert_allclose(module.bias.detach().numpy(), vector, rtol=1e-10)


def test_a_matrix_is_remembered_by_its_rows_and_columns(make_plan: MakePlan) -> None:
    optimizer = MasterOptimizer(nn.Linear(50, 30), make_plan(optimizer=OptimizerPlan(name="adafactor")).training)
    optimizer.step(0.0, 1.0)
    found = {name: tuple(part.shape) for name, part in optimizer.moment_state().items()}
    assert found == {"rows.weight": (30,), "columns.weight": (50,), "second.bias": (30,)}
