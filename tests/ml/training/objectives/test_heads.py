"""Losses of task heads, and the temperature that is fitted at the end."""

from __future__ import annotations

import pytest
import torch

from luthier.core.task_head import TaskHead
from luthier.ml.training.objectives.heads import _row_weights, fitted_temperature, right_rows

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
