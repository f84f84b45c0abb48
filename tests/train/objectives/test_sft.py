"""Supervised fine-tuning: what is minimised in training, and what validation reports."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import ObjectivePlan, Plan
from luthier.train.model import TrainableModel, collate
from luthier.train.objectives.sft import Sft


def test_smoothing_is_of_training_alone(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], examples: list[TokenisedExample]
) -> None:
    model = make_model(make_plan(), torch.float64)
    units = [(example,) for example in examples[:5]]
    batch = collate(examples[:5], model.pad_id, "cpu")
    smooth, plain = Sft(ObjectivePlan(name="sft", label_smoothing=0.2)), Sft(ObjectivePlan(name="sft"))
    logits = (model.hidden(batch).flatten(0, 1) @ model.head.t())[batch.rows]

    model.module.train()
    trained = smooth.losses(model, units, batch)
    wanted = F.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(trained.total, wanted)
    without = plain.losses(model, units, batch)
    assert float(trained.measures["plain_loss"]) == pytest.approx(float(without.total.detach()))
    assert set(without.measures) == {"token_accuracy"}

    model.module.eval()
    assert torch.equal(smooth.losses(model, units, batch).total, plain.losses(model, units, batch).total)
    assert set(smooth.losses(model, units, batch).measures) == {"token_accuracy"}
