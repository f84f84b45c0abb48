"""The chunked loss of distillation equals the plain formula in value and gradient, for every divergence."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.recipe import Divergence
from luthier.ml.training.losses.divergence import Mixing, distillation_sum

ALL: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "jensen_shannon")


def plain(student: Tensor, teacher: Tensor, targets: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, with all logits at once and torch's own derivative."""
    common = min(student.shape[1], teacher.shape[1])
    q = (student[:, :common] / mixing.temperature).softmax(1)
    p = (teacher[:, :common] / mixing.temperature).softmax(1)

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return (one * (one.log() - other.log())).sum()

    b = mixing.teacher_share
    m = b * p + (1 - b) * q
    found = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jensen_shannon": b * kl(p, m) + (1 - b) * kl(q, m)}
    entropy, apart = F.cross_entropy(student, targets, reduction="sum"), found[mixing.divergence]
    return (1 - mixing.alpha) * entropy + mixing.alpha * mixing.temperature**2 * apart, entropy, apart


def case(dtype: torch.dtype = torch.float64, rows: int = 7, student: int = 11, teacher: int = 11) -> list[Tensor]:
    torch.manual_seed(0)
    hidden, head = torch.randn(rows, 5, dtype=dtype), torch.randn(student, 5, dtype=dtype)
    return [hidden, head, torch.randint(0, min(student, teacher), (rows,)), *(
        torch.randn(n, 3, dtype=dtype) for n in (rows, teacher)
    )]  # fmt: skip


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize(("temperature", "alpha", "share"), [(1.0, 1.0, 0.5), (2.5, 0.3, 0.1), (0.5, 0.0, 0.9)])
@pytest.mark.parametrize(("chunk", "trains_head"), [(1, True), (3, False), (100, True)])
def test_equals_the_plain_formula(
    divergence: Divergence, temperature: float, alpha: float, share: float, chunk: int, trains_head: bool
) -> None:
    hidden, head, targets, states, teacher_head = case()
    hidden.requires_grad_()
    head.requires_grad_(trains_head)
    mixing = Mixing(divergence, temperature, alpha, share)
    wanted = plain(hidden @ head.t(), states @ teacher_head.t(), targets, mixing)
    total, entropy, apart, correct = distillation_sum(hidden, head, targets, states, teacher_head, mixing, chunk)
    for ours, theirs in zip((total, entropy, apart), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert int(correct) == int(((hidden @ head.t()).argmax(1) == targets).sum())
    sources = [hidden, head] if trains_head else [hidden]
    for ours, theirs in zip(
        torch.autograd.grad(total * 0.3, sources), torch.autograd.grad(wanted[0] * 0.3, sources), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("student", "teacher"), [(11, 14), (14, 11)])
@pytest.mark.parametrize("divergence", ALL)
def test_rows_that_pad_one_of_the_heads_count_in_no_divergence(
    divergence: Divergence, student: int, teacher: int
) -> None:
    hidden, head, targets, states, teacher_head = case(student=student, teacher=teacher)
    hidden.requires_grad_()
    mixing = Mixing(divergence, 1.5, 0.7, 0.4)
    wanted = plain(hidden @ head.t(), states @ teacher_head.t(), targets, mixing)[0]
    total = distillation_sum(hidden, head, targets, states, teacher_head, mixing, 4)[0]
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(torch.autograd.grad(total, hidden), torch.autograd.grad(wanted, hidden))


@pytest.mark.parametrize("divergence", ALL)
def test_a_student_that_is_its_teacher_has_nothing_left_to_learn(divergence: Divergence) -> None:
    hidden, head, targets, _, _ = case()
    hidden.requires_grad_()
    total, _, apart, _ = distillation_sum(
        hidden, head, targets, hidden.detach(), head, Mixing(divergence, 2.0, 1.0, 0.3)
    )
    (gradient,) = torch.autograd.grad(total, hidden)
    assert float(apart) == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_jensen_shannon_lies_between_nothing_and_the_entropy_of_its_share() -> None:
    hidden, head, targets, states, teacher_head = case(rows=1)
    found = distillation_sum(
        hidden * 50, head, targets, states * 50, teacher_head, Mixing("jensen_shannon", 1.0, 1.0, 0.5)
    )
    assert 0.0 < float(found[2]) <= math.log(2) + 1e-12


def test_huge_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, -1e4]], requires_grad=True)
    for divergence in ALL:
        total, *_ = distillation_sum(
            hidden, torch.eye(2), torch.tensor([1]), -hidden.detach(), torch.eye(2), Mixing(divergence, 1.0, 0.5)
        )
        (gradient,) = torch.autograd.grad(total, hidden)
        assert torch.isfinite(total)
        assert torch.isfinite(gradient).all()
