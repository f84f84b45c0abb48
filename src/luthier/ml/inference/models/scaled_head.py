"""What a model does to the product of its head, where that is a scale and a soft cap: measured, not read in a config.

    logits = cap * tanh(scale * product / cap)        scale alone where nothing is capped

Both are called by another name in every family. States so large that a cap saturates show the cap itself; with it
known, ordinary states show the scale. What is measured here is a guess until whoever uses it has held it against the
model's own logits (`forward_proof`, `likelihood`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from luthier.ml.inference.models.forward_arguments import FORWARD_ERRORS

_SATURATED: Final = (1e3, 1e4)
"""Products of these sizes give the same largest logit where there is a cap."""
_UNBENT: Final = 0.5
"""Logits up to this share of a cap say what went into it; above, rounding is blown up in the backward pass."""
_DIGITS: Final = 6


Head = Callable[[Tensor], Tensor]
"""Makes [N, vocabulary] of states [N, width]."""


@dataclass(frozen=True, slots=True)
class ScaledHead:
    """What is done to the product of hidden states and the head's matrix.

    Attributes:
        scale: factor of the product.
        cap: of the soft cap behind it; None for no cap.
    """

    scale: float = 1.0
    cap: float | None = None

    def of(self, product: Tensor) -> Tensor:
        """Logits of a product, which is left as it is."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap

    def has_gradient_of(self, head: Head, product: Head, states: Tensor, tolerance: float) -> bool:
        """Whether a random sum of logits has the same gradient by these states [N, width] as that of a model's head."""
        found: list[Tensor] = []
        with torch.enable_grad():
            for form in (head, lambda x: self.of(product(x).float())):
                leaf = states.detach().clone().requires_grad_()
                logits = form(leaf).float()
                weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).to(logits)
                found += torch.autograd.grad((logits * weight).sum(), leaf)
        own, ours = (gradient.float() for gradient in found)
        return bool((own - ours).norm() <= tolerance * own.norm() + 1e-30)


PLAIN: Final = ScaledHead()


@torch.no_grad()
def measured(head: Head, matrix_product: Head, states: Tensor, tolerance: float) -> ScaledHead | None:
    """Scale and cap of a model's own head, by what it gives for some states; None where neither fits.

    Args:
        head: the model's own way from states to logits.
        matrix_product: states times the matrix of the head.
        states: [N, width].
        tolerance: of logits, as a share of the largest.
    """
    product = matrix_product(states).double()
    size = float(product.abs().max().clamp_min(1e-30))
    try:
        logits = head(states).double()
        # Ten times the input and the same largest logit: it is capped there.
        first, second = (float(head(states * (large / size)).double().abs().max()) for large in _SATURATED)
    except FORWARD_ERRORS:
        return None
    if logits.shape != product.shape or not bool(logits.isfinite().all()):
        return None
    cap = _plain_number(second, tolerance) if abs(first - second) <= tolerance * second else None
    if cap is not None:
        is_unbent = logits.abs() <= _UNBENT * cap
        product = product[is_unbent]
        # The cap is undone where that is well conditioned; then the scale is linear.
        logits = (logits[is_unbent] / cap).atanh() * cap
    # Least squares through the origin, in float64.
    scale = float((logits * product).sum() / product.square().sum().clamp_min(1e-30))
    return ScaledHead(_plain_number(scale, tolerance), cap) if scale and abs(scale) < float("inf") else None


def _plain_number(value: float, tolerance: float) -> float:
    """The shortest decimal number, or one over such a number, that a measured value represents within its error.

    So that rounding, which differs from device to device, does not become part of a loss.
    """
    if not value:
        return value
    error = max(tolerance / 64, 1e-7) * abs(value)  # that of one logit is averaged out over many
    for digits in range(1, _DIGITS + 1):
        found = (float(f"{value:.{digits}g}"), 1 / float(f"{1 / value:.{digits}g}"))
        nearer = min(found, key=lambda one: abs(one - value))
        if abs(nearer - value) <= error:
            return nearer
    return value
