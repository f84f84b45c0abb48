"""Token log-probabilities equal plain log-softmax, in value and in the gradient of any weighting of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.ml.training.losses.cross_entropy import (
    WIDE_ROWS,
    entropy_sum,
    summed_by_row,
    token_log_probabilities,
)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("trains_head", [False, True])
def test_equals_plain_log_softmax(chunk: int, trains_head: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, dtype=torch.float64, requires_grad=trains_head)
    targets = torch.randint(0, 11, (7,))
    wanted = torch.log_softmax(hidden @ head.t(), -1).gather(1, targets[:, None])[:, 0]
    found = token_log_probabilities(hidden, head, targets, chunk)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(7, dtype=torch.float64)
    sources = [hidden, head] if trains_head else [hidden]
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), sources),
        torch.autograd.grad((wanted * weights).sum(), sources),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_gradient_is_the_derivative() -> None:
    torch.manual_seed(1)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    head = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, 5, 2])
    assert torch.autograd.gradcheck(lambda h, w: token_log_probabilities(h, w, targets, 3), (hidden, head))


def test_no_probability_is_above_1_in_bfloat16() -> None:
    """A logit rounded to bf16 could be above its own log-sum: here each token is almost certain."""
    torch.manual_seed(2)
    head = torch.randn(50, 16, dtype=torch.bfloat16)
    hidden = head[:20] * 3
    found = token_log_probabilities(hidden, head, torch.arange(20))
    assert found.dtype == torch.float32
    assert float(found.max()) <= 0.0
    exact = torch.log_softmax(hidden.double() @ head.double().t(), -1).diagonal()
    torch.testing.assert_close(found.double(), exact, atol=5e-3, rtol=0)


class _LargestWide(TorchDispatchMode):
    """The most elements of an fp32 tensor that any operation returns."""

    num = 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = function(*given, **(named or {}))
        if isinstance(found, torch.Tensor) and found.dtype is torch.float32:
            self.num = max(self.num, found.numel())
        return found


@pytest.mark.parametrize("cap", [None, 30.0])
def test_only_a_few_rows_are_widened_at_a_time(cap: float | None) -> None:
    """A chunk of 512 rows over 49,152 tokens in fp32 would be 100 MB, and the entropy had four of these."""
    torch.manual_seed(3)
    hidden = torch.randn(100, 8, dtype=torch.bfloat16, requires_grad=True)
    head, targets = torch.randn(300, 8, dtype=torch.bfloat16), torch.arange(100)
    with _LargestWide() as largest:
        token_log_probabilities(hidden, head, targets, cap=cap).sum().backward()
        entropy_sum(hidden, head, cap=cap)
    assert 0 < largest.num <= WIDE_ROWS * 300


def test_huge_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, -1e4]], requires_grad=True)
    found = token_log_probabilities(hidden, torch.eye(2), torch.tensor([1]))
    found.sum().backward()
    assert found.tolist() == pytest.approx([-2e4])
    assert torch.isfinite(hidden.grad).all()  # type: ignore[arg-type]


def test_sums_are_of_each_row() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    sums = summed_by_row(values, (1, 0, 3))
    assert sums.tolist() == [1.0, 0.0, 14.0]
    sums[2].backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("trains_head", [False, True])
def test_a_temperature_divides_the_logits(chunk: int, trains_head: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, dtype=torch.float64, requires_grad=trains_head)
    targets, slopes = torch.randint(0, 11, (7,)), torch.randn(7, dtype=torch.float64)
    plain = torch.log_softmax(hidden @ head.t() / 0.7, 1)
    wanted = plain.gather(1, targets[:, None])[:, 0]
    found = token_log_probabilities(hidden, head, targets, chunk, temperature=0.7)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(entropy_sum(hidden, head, 0.7, chunk), -(plain.exp() * plain).sum())
    sources = [hidden, head] if trains_head else [hidden]
    ours = torch.autograd.grad((found * slopes).sum(), sources)
    theirs = torch.autograd.grad((wanted * slopes).sum(), sources)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
