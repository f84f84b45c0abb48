"""Cross-entropy of the learned tokens, with logits computed only where there is one.

A vocabulary of 50,000 makes logits the largest tensor of a small model's step. Here only rows whose next token is
learned are multiplied with the head, a chunk at a time, and each chunk's gradient is formed at once, so that no more
than one chunk of logits exists at any moment (the idea of Liger Kernel's fused linear cross-entropy, Hsu et al.,
2024, arXiv:2410.10989, section 3.2, in plain torch).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 512


def _one_chunk(
    rows: Tensor, weight: Tensor, wanted: Tensor, wide: torch.dtype, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss of a chunk, how many are right, and the gradient of its logits where it is needed.

    A function of its own, so that its logits are gone when the next chunk's come.
    """
    logits = (rows @ weight.t()).to(wide)
    chosen = logits.gather(1, wanted)
    largest = logits.amax(1, keepdim=True)
    correct = (chosen == largest).sum()
    exponents = logits.sub_(largest).exp_()
    sums = exponents.sum(1, keepdim=True)
    loss = (sums.log() + largest - chosen).sum()
    if not needs_gradient:
        return loss, correct, None
    # d(loss)/d(logits) = softmax - one_hot, formed in place of the exponents
    exponents.div_(sums).scatter_add_(1, wanted, torch.full_like(chosen, -1.0))
    return loss, correct, exponents.to(rows.dtype)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T` against targets.

    hidden: [N, width]; weight: [vocabulary, width]; targets: [N]. Returns the sum in nats (a scalar, fp32 or wider) and
    how many targets have the largest logit. The gradient of the weight is formed only where the weight is trained.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        total = torch.zeros((), dtype=wide, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        for start in range(0, hidden.shape[0], chunk):
            rows = hidden[start : start + chunk]
            loss, right, narrow = _one_chunk(
                rows, weight, targets[start : start + chunk, None], wide, needs_hidden or needs_weight
            )
            total += loss
            correct += right
            if narrow is not None and grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[start : start + chunk])
            if narrow is not None and grad_weight is not None:
                grad_weight.add_(narrow.t() @ rows)
            del narrow  # or it would stand beside the logits of the next chunk
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = gradients[0]
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * scale.to(grad_weight.dtype),
            None,
            None,
        )


def cross_entropy_sum(hidden: Tensor, head: Tensor, targets: Tensor, chunk: int = CHUNK_ROWS) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy in nats and number of correct predictions; shapes as in `ChunkedCrossEntropy`."""
    out: tuple[Tensor, Tensor] = ChunkedCrossEntropy.apply(hidden, head, targets, chunk)
    return out
