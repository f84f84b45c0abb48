"""Frozen matrices plus a low-rank product, as one autograd function, and its dropout.

The dropout mask is regenerated from a key in the backward pass instead of being saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from luthier.ml.training import fused_operations
from luthier.ml.training.kernels import save_input, saved_rows

_DROPOUT_STEPS = 1 << 15
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout(NamedTuple):
    """One dropout mask, identified by a key: the same key gives the same mask, so no mask is ever saved.

    Half the time and none of the memory of torch's own dropout on a CPU (docs/log.md).

    Attributes:
        probability: that an input is dropped.
        key: of the mask, 0 to 2^62.
        numba_kernels: whether loops compiled by Numba are used; the mask is the same.
    """

    probability: float
    key: int
    numba_kernels: bool = False

    @property
    def keep_probability(self) -> float:
        """The exact keep probability: the dropout probability is rounded to a multiple of 1/32768."""
        return self._keep_steps / _DROPOUT_STEPS

    @property
    def _keep_steps(self) -> int:
        return _DROPOUT_STEPS - round(self.probability * _DROPOUT_STEPS)

    def mask(self, like: Tensor) -> Tensor | None:
        """A bit mask: all ones where an input is kept, all zeros where not; integers as wide as the elements of `like`.

        Fifteen random bits per element. None if the probability is too small to drop anything.
        """
        if self._keep_steps == _DROPOUT_STEPS:
            return None
        count = like.numel()
        # Each 64-bit word is read as four draws of 16 bits, of which 15 are used.
        mask = self._random_words((count + 3) // 4, like.device).view(torch.int16)[:count]
        # 0..32767 minus the threshold is negative exactly where an input is kept; shifting spreads the sign over all
        # bits
        mask.bitwise_and_(_DROPOUT_STEPS - 1).sub_(self._keep_steps).bitwise_right_shift_(15)
        # Widening an integer repeats its sign bit: all ones stay all ones.
        return mask.view(like.shape).to(_INTEGERS[like.element_size()])

    def _random_words(self, count: int, device: torch.device) -> Tensor:
        if device.type == "cpu":  # the same words as in `fused_operations.dropout`, and twice as fast as torch's
            return torch.from_numpy(fused_operations.random_words(self.key, count).view(np.int64))
        generator = torch.Generator(device).manual_seed(self.key)
        return torch.empty(count, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)

    def of(self, x: Tensor) -> Tensor:
        """x with dropped inputs set to zero and the others unscaled."""
        if self._keep_steps == _DROPOUT_STEPS:
            return x
        if self.numba_kernels and fused_operations.applies(x):
            return fused_operations.dropout(x, self.key, self._keep_steps)
        return keep(x, self.mask(x))

    def add_of_(self, total: Tensor, part: Tensor) -> Tensor:
        """total + `of`(part), in place."""
        if self._keep_steps == _DROPOUT_STEPS:
            return total.add_(part)
        if self.numba_kernels and fused_operations.applies(total, part):
            return fused_operations.add_dropout_(total, part, self.key, self._keep_steps)
        return total.add_(keep(part, self.mask(part)))


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with dropped inputs set to zero and the others unscaled, by a bitwise AND."""
    # Not a product: 0 * inf and 0 * NaN would be NaN.
    return x if mask is None else (x.view(mask.dtype) & mask).view(x.dtype)


class PackedMatrix(Protocol):
    """A frozen matrix that is stored in fewer bits than the compute precision."""

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in that precision, unpacked at each call."""
        ...


class LoraProduct(torch.autograd.Function):
    """x W^T (+ bias) + scale * dropout(x) A^T B^T with W frozen.

    Saves the low-rank intermediate for the backward pass, and x unless it can be recomputed; neither the dropped-out
    copy of x nor its mask is saved.

    Args:
        x: [..., in].
        base: W [out, in], or a packed matrix that is unpacked on use.
        bias: [out], or None.
        a: A [rank, in].
        b: B [out, rank].
        dropout: of the adapter's input; None for none.
        scale: factor of the adapter's product, including the dropout's 1 / (1 - p).

    Returns:
        [..., out].
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
        rows = x.reshape(-1, x.shape[-1])  # [N, in]
        # [N, rank]; the 1 / (1 - p) of dropout is part of `scale`
        thin = (rows if dropout is None else dropout.of(rows)) @ a.t()
        weight = base if isinstance(base, Tensor) else base.unpacked(x.dtype)
        out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        out.addmm_(thin, b.t(), alpha=scale)  # [N, out], no second tensor of that size
        save_input(ctx, x, base if isinstance(base, Tensor) else None, a, b, thin)
        ctx.scale, ctx.shape, ctx.dropout = scale, x.shape, dropout
        ctx.packed = None if isinstance(base, Tensor) else base
        return _shaped(out, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        rows, (weight, a, b, thin) = saved_rows(ctx)
        dropout: Dropout | None = ctx.dropout
        grad = grad.reshape(-1, grad.shape[-1])  # [N, out]
        grad_b = (grad.t() @ thin).mul_(ctx.scale)  # [out, rank]
        grad_thin = (grad @ b).mul_(ctx.scale)  # [N, rank]
        grad_a = grad_thin.t() @ (rows if dropout is None else dropout.of(rows))  # [rank, in]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ (weight if ctx.packed is None else ctx.packed.unpacked(grad.dtype))  # [N, in]
            if dropout is None:
                grad_x.addmm_(grad_thin, a)
            else:
                # The mask applies only to the adapter: the frozen matrix reads x without dropout.
                dropout.add_of_(grad_x, grad_thin @ a)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None, None


class LoraProducts(torch.autograd.Function):
    """Several `LoraProduct`s of one input, with one output each and one dropout mask for all.

    All A are stacked and read the input once, in the forward and in the backward pass. The gradients of the input are
    accumulated inside, where autograd would make one tensor for each and add them afterwards: 1.2 times as fast for
    queries, keys and values (docs/log.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bases: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        dropout: Dropout | None,
        scales: Sequence[float],
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        """The products, each [..., out].

        Args:
            ctx: autograd's context.
            x: the common input [..., in].
            bases: frozen matrices [out, in] of the products.
            biases: [out] each; None for none.
            dropout: of the adapters' common input; None for none.
            scales: factors of B A, including the dropout's 1 / (1 - p).
            factors: A [rank, in] and B [out, rank] of the first product, then of the second, and so on.
        """
        rows = x.reshape(-1, x.shape[-1])  # [N, in]
        kept = rows if dropout is None else dropout.of(rows)
        readers = factors[::2]
        # one product with all A stacked, [sum of ranks, in]
        thins = (kept @ torch.cat(readers).t()).split([a.shape[0] for a in readers], 1)
        outs = []
        for base, bias, thin, b, scale in zip(bases, biases, thins, factors[1::2], scales, strict=True):
            out = rows @ base.t() if bias is None else torch.addmm(bias, rows, base.t())
            outs.append(_shaped(out.addmm_(thin, b.t(), alpha=scale), x))
        save_input(ctx, x, *bases, *thins, *factors)
        ctx.scales, ctx.shape, ctx.dropout = scales, x.shape, dropout
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        num = len(gradients)
        rows, saved = saved_rows(ctx)
        bases, thins, factors = saved[:num], saved[num : 2 * num], saved[2 * num :]
        dropout: Dropout | None = ctx.dropout
        grads = [g.reshape(-1, g.shape[-1]) for g in gradients]  # each [N, out]
        grad_bs = [(g.t() @ thin).mul_(scale) for g, thin, scale in zip(grads, thins, ctx.scales, strict=True)]
        grad_thins = [(g @ b).mul_(scale) for g, b, scale in zip(grads, factors[1::2], ctx.scales, strict=True)]
        together = torch.cat(grad_thins, 1)  # [N, sum of ranks]
        kept = rows if dropout is None else dropout.of(rows)
        grad_as = (together.t() @ kept).split([a.shape[0] for a in factors[::2]])
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grads[0] @ bases[0]
            for grad, base in zip(grads[1:], bases[1:], strict=True):
                grad_x.addmm_(grad, base)
            if dropout is None:
                grad_x.addmm_(together, torch.cat(factors[::2]))
            else:
                dropout.add_of_(grad_x, together @ torch.cat(factors[::2]))
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, None, None, *(g for pair in zip(grad_as, grad_bs, strict=True) for g in pair)


def _shaped(rows: Tensor, x: Tensor) -> Tensor:
    """Rows [N, out] as [..., out] for x [..., in]: not an autograd view, so that a model may add to it in place."""
    shaped: Tensor = torch.ops.aten._unsafe_view(rows, [*x.shape[:-1], rows.shape[-1]])
    return shaped
