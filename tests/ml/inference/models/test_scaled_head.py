"""Scale and cap of a head are found by measuring it; what is neither is not taken for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from luthier.ml.inference.models.forward import PLAIN, ScaledHead, measured

EXACT = 1e-6


def found_of(change: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> ScaledHead | None:
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(300, 24, generator=draw).to(dtype)
    states = torch.randn(8, 24, generator=draw).to(dtype)
    tolerance = EXACT if dtype == torch.float32 else 2**-7
    return measured(lambda x: change(x @ matrix.t()), lambda x: x @ matrix.t(), states, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("scale", "cap"),
    [(1.0, None), (1 / 6, None), (0.0625, None), (0.0390625, None), (16.0, None), (1.0, 30.0), (0.5, 50.0), (4.0, 2.0)],
)
def test_the_very_numbers_are_found(scale: float, cap: float | None, dtype: torch.dtype) -> None:
    found = found_of(ScaledHead(scale, cap).of, dtype)
    assert found is not None
    assert found.cap == cap
    assert found.scale == (scale if dtype == torch.float32 else pytest.approx(scale, rel=1e-3))


def test_a_head_that_fails_or_gives_another_shape_has_none() -> None:
    def fails(_: Tensor) -> Tensor:
        raise RuntimeError("no")

    assert found_of(fails) is None
    assert found_of(lambda logits: logits[:, :7]) is None


@pytest.mark.parametrize("change", [lambda x: x + 0.1, lambda x: x * x, torch.relu, lambda x: x.clamp(-3, 3)])
def test_what_is_neither_differs_from_what_was_measured(change: Callable[[Tensor], Tensor]) -> None:
    """The measure is a guess that its user holds against the head: there it must fail."""
    product = torch.linspace(-8.0, 8.0, 101)[None]
    found = found_of(change)
    assert found is None or float((found.of(product) - change(product)).abs().max()) > 1e-3


def test_gradients_are_compared_with_those_of_the_head() -> None:
    draw = torch.Generator().manual_seed(0)
    matrix, states = torch.randn(50, 6, generator=draw), torch.randn(4, 6, generator=draw)
    capped = ScaledHead(0.5, 3.0)

    def product(x: Tensor) -> Tensor:
        return x @ matrix.t()

    assert capped.has_gradient_of(lambda x: torch.tanh(product(x) / 6) * 3, product, states, 1e-6)
    assert not capped.has_gradient_of(lambda x: product(x) * 0.5, product, states, 1e-3)
    assert not PLAIN.has_gradient_of(lambda x: capped.of(product(x)), product, states, 1e-3)
