"""The fused product and its gradients."""

from __future__ import annotations

import pytest
import torch

from luthier.ml.training.low_rank import Dropout, LoraProduct, LoraProducts, keep


@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_are_the_derivatives(dropped: bool) -> None:
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    x, weight, bias = draw(2, 3, 5).requires_grad_(), draw(4, 5), draw(4)
    a, b = draw(2, 5).requires_grad_(), draw(4, 2).requires_grad_()
    dropout = Dropout(0.4, key=7) if dropped else None
    assert torch.autograd.gradcheck(lambda x, a, b: LoraProduct.apply(x, weight, bias, a, b, dropout, 0.7), (x, a, b))


def test_dropout_takes_inputs_of_the_adapter_alone_and_makes_good_what_it_took() -> None:
    """Srivastava et al., 2014, in the inverted form: kept inputs count 1 / (share kept); the base sees all of them."""
    torch.manual_seed(0)
    x, weight, a, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((500, 8), (4, 8), (2, 8), (4, 2)))
    dropout = Dropout(0.25, key=3)
    scale = 0.7 / dropout.keep_probability
    mask = dropout.mask(x)
    assert mask is not None
    found = LoraProduct.apply(x, weight, None, a, b, dropout, scale)
    kept = (keep(torch.ones_like(x), mask) / dropout.keep_probability) * x
    torch.testing.assert_close(found, x @ weight.t() + 0.7 * kept @ a.t() @ b.t())
    ones = torch.ones(20_000, 8, dtype=torch.float64)
    mean = LoraProduct.apply(ones, weight, None, a, b, Dropout(0.25, key=4), scale).mean(0)
    torch.testing.assert_close(mean, (ones[:1] @ weight.t() + 0.7 * ones[:1] @ a.t() @ b.t())[0], rtol=0, atol=0.1)


@pytest.mark.parametrize("dropped", [False, True])
def test_several_products_of_one_input_are_those_products(dropped: bool) -> None:
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    widths, ranks = (4, 2, 3), (2, 1, 3)
    x = draw(2, 3, 5).requires_grad_()
    bases, biases = [draw(n, 5) for n in widths], [draw(4), None, draw(3)]
    factors = [t for n, r in zip(widths, ranks, strict=True) for t in (draw(r, 5), draw(n, r))]
    for factor in factors:
        factor.requires_grad_()
    dropout = Dropout(0.4, key=7) if dropped else None
    scales = [0.7, 1.1, 2.0]
    together = LoraProducts.apply(x, bases, biases, dropout, scales, *factors)
    apart = [
        LoraProduct.apply(x, base, bias, a, b, dropout, scale)
        for base, bias, a, b, scale in zip(bases, biases, factors[::2], factors[1::2], scales, strict=True)
    ]
    gradients = [torch.randn_like(out) for out in apart]
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)
    wanted = torch.autograd.grad(apart, [x, *factors], gradients)
    for one, other in zip(torch.autograd.grad(together, [x, *factors], gradients), wanted, strict=True):
        torch.testing.assert_close(one, other)
