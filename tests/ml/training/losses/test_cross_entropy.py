"""Chunked cross-entropy equals the plain one in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from luthier.ml.training.losses.cross_entropy import cross_entropy_sum, smoothed_cross_entropy_sum


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("trains_head", [False, True])
def test_equals_plain_cross_entropy(chunk: int, trains_head: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, dtype=torch.float64, requires_grad=trains_head)
    targets = torch.randint(0, 11, (7,))
    wanted = F.cross_entropy(hidden @ head.t(), targets, reduction="sum")
    total, correct = cross_entropy_sum(hidden, head, targets, chunk)
    torch.testing.assert_close(total, wanted)
    assert int(correct) == int(((hidden @ head.t()).argmax(1) == targets).sum())
    sources = [hidden, head] if trains_head else [hidden]
    for ours, theirs in zip(
        torch.autograd.grad(total * 0.3, sources), torch.autograd.grad(wanted * 0.3, sources), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_huge_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, -1e4]], requires_grad=True)
    total, _ = cross_entropy_sum(hidden, torch.eye(2), torch.tensor([1]))
    total.backward()
    assert float(total.detach()) == pytest.approx(2e4)
    assert torch.isfinite(hidden.grad).all()  # type: ignore[arg-type]


def test_bfloat16_keeps_its_sum_in_float32() -> None:
    hidden, head = torch.zeros(1000, 4, dtype=torch.bfloat16), torch.zeros(8, 4, dtype=torch.bfloat16)
    total, _ = cross_entropy_sum(hidden, head, torch.zeros(1000, dtype=torch.int64))
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(1000 * 2.0794415, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("trains_head", [False, True])
def test_label_smoothing_equals_that_of_torch(smoothing: float, chunk: int, trains_head: bool) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, dtype=torch.float64, requires_grad=trains_head)
    targets = torch.randint(0, 11, (7,))
    logits = hidden @ head.t()
    wanted = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    total, plain, correct = smoothed_cross_entropy_sum(hidden, head, targets, smoothing, chunk)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(plain, F.cross_entropy(logits, targets, reduction="sum"))
    assert not plain.requires_grad
    assert int(correct) == int((logits.argmax(1) == targets).sum())
    sources = [hidden, head] if trains_head else [hidden]
    for ours, theirs in zip(
        torch.autograd.grad(total * 0.3, sources), torch.autograd.grad(wanted * 0.3, sources), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_smoothed_huge_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, -1e4]], requires_grad=True)
    total, plain, _ = smoothed_cross_entropy_sum(hidden, torch.eye(2), torch.tensor([1]), 0.1)
    total.backward()
    assert float(total.detach()) == pytest.approx(0.95 * 2e4), "0.9 of the wanted and half of 0.1"
    assert float(plain) == pytest.approx(2e4)
    assert torch.isfinite(hidden.grad).all()  # type: ignore[arg-type]
