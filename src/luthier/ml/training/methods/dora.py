"""DoRA: length and direction of each row of a matrix are trained apart.

Liu et al., 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353, section 4.1: W' = m (W + s B A) / n,
with n the Euclidean norm of each row of W + s B A, and m a trained length that starts at that of W. As in section 4.3
the norm is a constant to the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from luthier.ml.training.low_rank import LoraProduct
from luthier.ml.training.methods.lora import ADAPTER, AdaptedForward, AdaptedLayer, Lora, matrix_of


class RowScale(torch.autograd.Function):
    """x * (length / norm) for each column of x [N, out], keeping x: one pass there, two back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, length: Tensor, norm: Tensor) -> Tensor:
        ctx.save_for_backward(x, length, norm)
        return x * (length / norm)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, length, norm = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        # [out], a sum over all positions, in fp32
        columns = (grad * x).flatten(0, -2).sum(0, dtype=wide)
        return grad * (length / norm), (columns / norm).to(length.dtype), None


class _RowLengthForward(AdaptedForward):
    """The low-rank product, each output scaled to its trained length; the bias is added after."""

    def __init__(self, layer: AdaptedLayer, probability: float) -> None:
        super().__init__(layer, probability)
        self.matrix = matrix_of(layer.get_base_layer())
        self.length = layer.lora_magnitude_vector[ADAPTER].weight
        self.squares = self.matrix.float().square().sum(1)  # [out]
        self.norm, self.norm_of = torch.empty(0), (-1, -1)

    @torch.no_grad()
    def current_norm(self) -> Tensor:
        """Row norms of W + s B A [out], computed again only when A or B changed: once a step, not once a micro-batch.

        |w + s bA|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b, so that B A is never formed. Rounded to the weights' own
        precision, as PEFT has it: so length / norm is exactly 1 at the start.
        """
        # torch counts in-place changes of a tensor: comparing counters costs nothing.
        versions = (self.a._version, self.b._version)
        if versions != self.norm_of:
            a, b, s = self.a.float(), self.b.float(), self.scale
            along = (self.matrix @ self.a.t()).float()  # [out, rank]
            squares = self.squares + (b * (2 * s * along + s * s * (b @ (a @ a.t())))).sum(1)
            norm = squares.clamp_min(0).sqrt().to(self.matrix.dtype)
            # a row of zeros has no direction: its length of zero keeps it zero
            self.norm, self.norm_of = norm.clamp_min(torch.finfo(norm.dtype).tiny), versions
        return self.norm

    def __call__(self, x: Tensor) -> Tensor:
        dropout, scale = self.draw()
        product = LoraProduct.apply(x, self.matrix, None, self.a, self.b, dropout, scale)
        out: Tensor = RowScale.apply(product, self.length, self.current_norm())
        return out if self.bias is None else out + self.bias


class Dora(Lora):
    """LoRA with a trained length for each row."""

    def config(self) -> LoraConfig:
        """LoRA's, with the lengths."""
        config = super().config()
        config.use_dora = True
        return config

    def forward_of(self, name: str, layer: AdaptedLayer) -> AdaptedForward:  # noqa: ARG002
        """The product with its rows scaled."""
        return _RowLengthForward(layer, self.plan.dropout)
