"""A frozen matrix and a thin trained product beside it, computed and differentiated as one function."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.train.dropout import Dropout, keep


class PackedMatrix(Protocol):
    """A frozen matrix that is held in fewer bits than it is computed in."""

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in that precision, made anew at each call."""
        ...


class LoraProduct(torch.autograd.Function):
    """x W^T (+ bias) + scale * dropout(x) A^T B^T with W frozen.

    x: [..., in]; W: [out, in], or a packed matrix that is unpacked where it is needed; A: [rank, in]; B: [out, rank].
    Keeps x and the thin product for the way back; neither the dropped-out copy of x nor its mask is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: Tensor | PackedMatrix,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        dropout: Dropout | None,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        thin = keep(rows, None if dropout is None else dropout.mask(rows)) @ a.t()
        weight = base if isinstance(base, Tensor) else base.unpacked(x.dtype)
        out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        out.addmm_(thin, b.t(), alpha=scale)
        ctx.save_for_backward(rows, base if isinstance(base, Tensor) else None, a, b, thin)
        ctx.scale, ctx.shape, ctx.dropout = scale, x.shape, dropout
        ctx.packed = None if isinstance(base, Tensor) else base
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        rows, weight, a, b, thin = ctx.saved_tensors
        mask = None if ctx.dropout is None else ctx.dropout.mask(rows)
        grad = grad.reshape(-1, grad.shape[-1])
        grad_b = (grad.t() @ thin).mul_(ctx.scale)
        grad_thin = (grad @ b).mul_(ctx.scale)
        grad_a = grad_thin.t() @ keep(rows, mask)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ (weight if ctx.packed is None else ctx.packed.unpacked(grad.dtype))
            if mask is None:
                grad_x.addmm_(grad_thin, a)
            else:
                grad_x.add_(keep(grad_thin @ a, mask))
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None, None
