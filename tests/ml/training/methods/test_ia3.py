"""IA3 scales activations by factors near 1, which weight decay would pull to 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.ml.training.test_loop import run, weights
from tests.vacuous import nonempty

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import Plan
from luthier.ml.training.model import TrainableModel

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]


@pytest.mark.parametrize(("method", "is_same"), [("ia3", True), ("lora", False)])
def test_factors_do_not_decay_and_matrices_do(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    method: str,
    is_same: bool,
) -> None:
    ended = []
    for decay in (0.0, 0.5):
        plan = make_plan(method, weight_decay=decay, learning_rate=0.01, num_steps=4)
        model = make_model(plan)
        run(plan, model, tmp_path / str(decay), examples, with_validation=False)
        ended.append(weights(model))
    for name, weight in nonempty(ended[0].items()):
        assert torch.equal(ended[1][name], weight) == is_same, name
