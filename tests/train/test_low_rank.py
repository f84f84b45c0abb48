"""The fused product and its gradients."""

from __future__ import annotations

import pytest
import torch

from luthier.train.dropout import Dropout
from luthier.train.low_rank import LoraProduct


@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_are_the_derivatives(dropped: bool) -> None:
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    x, weight, bias = draw(2, 3, 5).requires_grad_(), draw(4, 5), draw(4)
    a, b = draw(2, 5).requires_grad_(), draw(4, 2).requires_grad_()
    dropout = Dropout(0.4, key=7) if dropped else None
    assert torch.autograd.gradcheck(lambda x, a, b: LoraProduct.apply(x, weight, bias, a, b, dropout, 0.7), (x, a, b))
