"""Logits that a model forms by itself give every objective what the fused product of the same head gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from luthier.ml.inference.models.forward import ScaledHead
from luthier.ml.training.losses.divergence import Mixing
from luthier.ml.training.losses.logit_rows import CHUNK_ROWS, LogitRows

WIDTH, VOCABULARY, ROWS = 16, 40, CHUNK_ROWS + 7
MIXINGS = [Mixing(kind, 2.0, 0.3) for kind in ("forward_kl", "reverse_kl", "jensen_shannon")]


CAPS = [None, 3.0]
"""Of a soft cap on the product; the logits here reach 10 and more."""


def both(cap: float | None = None) -> tuple[LogitRows, LogitRows, Tensor]:
    """The product of a head, the same head as a function, and targets; of several chunks."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64)
    matrix = torch.randn(VOCABULARY, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
    other = matrix.detach().clone().requires_grad_()
    product = LogitRows(rows.clone().requires_grad_(), matrix, cap=cap)
    formed = LogitRows(rows.clone().requires_grad_(), form=lambda part: ScaledHead(cap=cap).of(part @ other.t()))
    formed_matrix.append(other)
    return product, formed, torch.randint(VOCABULARY, (ROWS,), generator=draw)


formed_matrix: list[Tensor] = []


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize(
    "loss",
    [
        lambda rows, targets: rows.cross_entropy_sum(targets)[0],
        lambda rows, targets: rows.smoothed_cross_entropy_sum(targets, 0.1)[0],
        lambda rows, targets: rows.token_log_probabilities(targets).square().sum(),
        lambda rows, targets: rows.token_log_probabilities(targets, 0.7).square().sum(),
        *(lambda rows, targets, m=m: rows.distillation_sum(targets, *teacher(), m)[0] for m in MIXINGS),
        lambda rows, targets: rows.distillation_sum(targets, *teacher(), MIXINGS[1], ScaledHead(0.5, 2.0))[0],
    ],
)
def test_losses_and_gradients_are_the_same(loss: Callable[[LogitRows, Tensor], Tensor], cap: float | None) -> None:
    product, formed, targets = both(cap)
    one, other = loss(product, targets), loss(formed, targets)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    one.backward()  # type: ignore[no-untyped-call]
    other.backward()  # type: ignore[no-untyped-call]
    assert product.matrix is not None
    torch.testing.assert_close(product.rows.grad, formed.rows.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(product.matrix.grad, formed_matrix[-1].grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("cap", CAPS)
def test_what_stands_beside_the_losses_is_the_same(cap: float | None) -> None:
    product, formed, targets = both(cap)
    for one, other in (
        (product.cross_entropy_sum(targets)[1], formed.cross_entropy_sum(targets)[1]),
        (product.smoothed_cross_entropy_sum(targets, 0.1)[1], formed.smoothed_cross_entropy_sum(targets, 0.1)[1]),
        (product.detach().entropy_sum(0.7), formed.detach().entropy_sum(0.7)),
        *zip(
            product.distillation_sum(targets, *teacher(), MIXINGS[0])[1:],
            formed.distillation_sum(targets, *teacher(), MIXINGS[0])[1:],
            strict=True,
        ),
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_no_more_than_one_chunk_of_logits_is_persistent_for_the_way_back() -> None:
    _, formed, targets = both()
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        loss = formed.cross_entropy_sum(targets)[0]
    assert sizes
    assert max(sizes) < CHUNK_ROWS * VOCABULARY
    loss.backward()  # type: ignore[no-untyped-call]


def teacher() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(ROWS, 8, generator=draw, dtype=torch.float64)
    return states, torch.randn(VOCABULARY - 3, 8, generator=draw, dtype=torch.float64)
