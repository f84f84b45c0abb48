"""Supervised fine-tuning: what is minimised in training, and what validation reports."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import ObjectivePlan, Plan
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objectives.sft import Sft


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


def test_by_sample_each_row_counts_the_same_in_however_many_sequences_it_stands(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], examples: list[TokenisedExample]
) -> None:
    model = make_model(make_plan(), torch.float64)
    units = [tuple(examples[:2]), tuple(examples[2:3]), tuple(examples[3:6])]
    rows = examples[:6]
    batch = collate(rows, model.pad_id, "cpu")
    logits = (model.hidden(batch).flatten(0, 1) @ model.head.t())[batch.rows]
    tokens = F.cross_entropy(logits, batch.targets, reduction="none")
    ends = [0]
    for row in rows:
        ends.append(ends[-1] + row.num_trained_tokens)
    wanted = (tokens[: ends[2]].mean() + tokens[ends[2] : ends[3]].mean() + tokens[ends[3] :].mean()) / 3

    by_sample = Sft(ObjectivePlan(name="sft", loss_weighting="sample"))
    total = by_sample.losses(model, units, batch).total
    assert by_sample.weight(units) == 3
    torch.testing.assert_close(total / by_sample.weight(units), wanted)
    named = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total / 3, list(named.values()), retain_graph=True)
    for name, one, other in zip(named, found, torch.autograd.grad(wanted, list(named.values())), strict=True):
        torch.testing.assert_close(one, other, msg=name)

    by_token = Sft(ObjectivePlan(name="sft", loss_weighting="token"))
    assert by_token.weight(units) == ends[-1]
    torch.testing.assert_close(by_token.losses(model, units, batch).total / ends[-1], tokens.mean().detach())


def test_dft_weighs_each_token_by_its_probability_and_takes_no_gradient_through_it(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], examples: list[TokenisedExample]
) -> None:
    """Equation 9 of arXiv:2508.05629, its gradient against that of torch in float64."""
    model = make_model(make_plan(), torch.float64)
    units = [(example,) for example in examples[:5]]
    batch = collate(examples[:5], model.pad_id, "cpu")
    dft, plain = Sft(ObjectivePlan(name="sft", loss_weighting="dft")), Sft(ObjectivePlan(name="sft"))
    weights = {name: p for name, p in model.module.named_parameters() if p.requires_grad}

    model.module.train()
    logits = (model.hidden(batch).flatten(0, 1) @ model.head.t())[batch.rows]
    tokens = F.cross_entropy(logits, batch.targets, reduction="none")
    wanted = (torch.exp(-tokens).detach() * tokens).sum()
    expected = torch.autograd.grad(wanted, list(weights.values()), retain_graph=True)
    # Through the probability the gradient would be that of -p log p as a whole: another one.
    through = torch.autograd.grad((torch.exp(-tokens) * tokens).sum(), list(weights.values()))
    trained = dft.losses(model, units, batch)
    torch.testing.assert_close(trained.total, wanted)
    found = torch.autograd.grad(trained.total, list(weights.values()))
    for name, one, other in zip(weights, found, expected, strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert any(not torch.allclose(one, other) for one, other in zip(found, through, strict=True))
    assert float(trained.measures["plain_loss"]) == pytest.approx(float(tokens.sum().detach()))
    assert dft.weight(units) == plain.weight(units)

    model.module.eval()
    assert torch.equal(dft.losses(model, units, batch).total, plain.losses(model, units, batch).total)
