"""Losses of task heads, and the temperature that is fitted at the end."""

from __future__ import annotations

import math
from array import array
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import ObjectivePlan
from luthier.core.task_head import TaskHead
from luthier.ml.training.objective_protocol import Unit
from luthier.ml.training.objectives.heads import (
    Classify,
    Ranking,
    _label_weights,
    _row_weights,
    fitted_temperature,
    right_rows,
)

_HEAD = TaskHead(kind="classify", width=4, labels=("a", "b", "c"), label_counts=(3, 2, 1))


def _drawn(num: int, head: TaskHead, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and rows whose classes are drawn by just these: calibrated at temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, len(head.labels), generator=generator)
    if head.is_multi_label:
        return logits, torch.bernoulli(logits.sigmoid(), generator=generator)
    places = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return logits, torch.nn.functional.one_hot(places, len(head.labels)).float()


@pytest.mark.parametrize("factor", [0.25, 1.0, 5.0])
@pytest.mark.parametrize("several", [False, True])
def test_the_temperature_takes_back_what_made_the_head_too_sure(factor: float, several: bool) -> None:
    head = _HEAD.model_copy(update={"is_multi_label": several})
    logits, wanted = _drawn(4000, head)
    found = fitted_temperature(factor * logits, wanted, head)
    assert found == pytest.approx(factor, rel=0.1)
    assert fitted_temperature(factor * logits, wanted, head) == found


def test_rows_that_are_all_right_measure_no_temperature() -> None:
    wanted = torch.eye(3)
    assert fitted_temperature(10 * wanted, wanted, _HEAD) == 1.0


def test_of_equal_logits_the_first_class_is_given() -> None:
    assert right_rows(torch.zeros(2, 3), torch.eye(3)[:2], _HEAD).tolist() == [True, False]


@pytest.mark.parametrize("counts", [(3, 1, 0), (4, 0, 0), (2, 1, 1)])
def test_balanced_weights_have_mean_1_over_the_training_rows_and_none_for_a_class_without_rows(
    counts: tuple[int, ...],
) -> None:
    head = TaskHead(kind="classify", width=8, labels=("a", "b", "c"), label_counts=counts)
    rows = [place for place, num in enumerate(counts) for _ in range(num)]
    weights = _row_weights(torch.eye(3)[rows], head)
    assert weights.mean().item() == pytest.approx(1)
    # Each class that has rows has the same weight in all.
    totals = [weights[[row == place for row in rows]].sum().item() for place, num in enumerate(counts) if num]
    assert totals == pytest.approx([4 / len(totals)] * len(totals))
    empty = [place for place, num in enumerate(counts) if not num]
    assert _row_weights(torch.eye(3)[empty], head).tolist() == [0.0] * len(empty)


def _several(rows: list[tuple[int, int, int]], num_rows: int | None = None) -> tuple[TaskHead, torch.Tensor]:
    wanted = torch.tensor(rows, dtype=torch.float32)
    counts = tuple(int(one) for one in wanted.sum(0))
    num = len(rows) if num_rows is None else num_rows
    labels = ("common", "rare", "other")
    return TaskHead(
        kind="classify", width=4, labels=labels, label_counts=counts, num_rows=num, is_multi_label=True
    ), wanted


def test_balanced_weights_of_several_labels_are_those_of_yes_and_no_of_each_label() -> None:
    # "rare" is only ever beside "common"; a weight for the whole row would raise both.
    head, wanted = _several([(1, 1, 0), *[(1, 0, 0)] * 6, (0, 0, 1), (0, 0, 0), (1, 0, 1)])
    weights = _label_weights(wanted, head)
    for place in range(3):
        column = wanted[:, place].numpy()
        no, yes = compute_class_weight("balanced", classes=np.array([0.0, 1.0]), y=column)
        assert weights[:, place].tolist() == pytest.approx([yes if one else no for one in column])
    assert weights.mean(0).tolist() == pytest.approx([1.0] * 3)
    assert weights[0, 1] > 4 > 1 > weights[0, 0]


def test_a_label_that_all_rows_have_or_none_keeps_weight_1() -> None:
    head, wanted = _several([(1, 0, 0), (1, 0, 1), (1, 0, 0), (1, 0, 0)])
    weights = _label_weights(wanted, head)
    assert weights[:, :2].eq(1).all()
    assert weights[:, 2].tolist() == pytest.approx([2 / 3, 2, 2 / 3, 2 / 3])


def test_a_head_with_several_labels_trains_with_a_weight_for_each_and_an_older_run_with_one_for_the_row() -> None:
    rows = [(1, 1, 0), *[(1, 0, 0)] * 6, (0, 0, 1)]
    head, wanted = _several(rows)
    logits = torch.linspace(-2, 2, wanted.numel()).reshape(wanted.shape)
    units: list[Unit] = [
        (TokenisedExample(id=str(n), input_ids=array("i", [1]), loss_mask=b"\x01", target=targets),)
        for n, targets in enumerate(tuple(float(place) for place, one in enumerate(row) if one) for row in rows)
    ]
    model = SimpleNamespace(head_outputs=lambda _batch: logits, module=SimpleNamespace(training=True))
    each = binary_cross_entropy_with_logits(logits, wanted, reduction="none")

    def loss(head: TaskHead) -> float:
        plan = ObjectivePlan(name="classify", class_weights="balanced", task_head=head)
        found = Classify(plan).losses(cast(Any, model), units, cast(Any, None))
        assert found.measures["plain_loss"].item() == pytest.approx(each.mean(-1).sum().item())
        return float(found.total)

    assert loss(head) == pytest.approx(float((each * _label_weights(wanted, head)).mean(-1).sum()))
    older = head.model_copy(update={"num_rows": 0})
    assert "num_rows" not in older.model_dump_json()
    assert loss(older) == pytest.approx(float((each.mean(-1) * _row_weights(wanted, older)).sum()))


@pytest.mark.parametrize("coefficient", [None, 0.0, 0.3])
def test_scores_of_a_pair_are_kept_around_0(coefficient: float | None) -> None:
    """-log s(a - b) + c (a + b)^2, summed over pairs, as the reward models of TRL have it."""
    scores = [(2.0, 0.5), (-1.0, 3.0), (0.25, -0.25)]
    head = TaskHead(kind="rank", width=4)
    plan = ObjectivePlan(name="rank", task_head=head, center_rewards_coefficient=coefficient)
    outputs = torch.tensor(scores).reshape(-1, 1)
    model = cast(Any, SimpleNamespace(head_outputs=lambda _: outputs))
    found = Ranking(plan).losses(model, [], cast(Any, None))
    expected = sum(math.log1p(math.exp(b - a)) + (coefficient or 0.0) * (a + b) ** 2 for a, b in scores)
    assert found.total.item() == pytest.approx(expected, rel=1e-6)
    assert found.measures["pair_accuracy"].item() == 2
