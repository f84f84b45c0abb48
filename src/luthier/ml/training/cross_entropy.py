"""Cross-entropy of the learned tokens, with logits computed only where there is one.

A vocabulary of 50,000 makes logits the largest tensor of a small model's step. Here only rows whose next token is
learned are multiplied with the head, a chunk at a time, and each chunk's gradient is formed at once, so that no more
than one chunk of logits exists at any moment (the idea of Liger Kernel's fused linear cross-entropy, Hsu et al.,
2024, arXiv:2410.10989, section 3.2, in plain torch).

Label smoothing (Szegedy et al., 2016, "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567,
section 7) takes a share of the weight off the wanted token and spreads it evenly over the whole vocabulary. Its loss
and gradient come from the same logits, with no second pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.ml.training.soft_cap import cap_, through_cap_

CHUNK_ROWS = 512
WIDE_ROWS = 16
"""Rows of a chunk that are held in fp32 at one time: few enough to stay in the processor's caches on their way."""


def _one_chunk(
    rows: Tensor,
    weight: Tensor,
    wanted: Tensor,
    wide: torch.dtype,
    needs_gradient: bool,
    smoothing: float,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Smoothed and plain loss of a chunk, how many are right, and the gradient of its logits where it is needed.

    A function of its own, so that its logits are freed before the next chunk's are allocated.

    Args:
        rows: [n, width].
        weight: [vocabulary, width].
        wanted: [n, 1].
    """
    logits = rows @ weight.t()  # [n, vocabulary], in the precision of the model
    loss, plain = (torch.zeros((), dtype=wide, device=rows.device) for _ in range(2))
    correct = torch.zeros((), dtype=torch.int64, device=rows.device)
    for start in range(0, len(logits), WIDE_ROWS):
        # [WIDE_ROWS, vocabulary] and [WIDE_ROWS, 1]: only these few rows are ever wide
        part, target = logits[start : start + WIDE_ROWS], wanted[start : start + WIDE_ROWS]
        # Compared by value, not by argmax: a tie for the largest logit counts as right, on every device alike.
        correct += (part.gather(1, target) == part.amax(1, keepdim=True)).sum()
        # log_softmax in fp32: over 50,000 terms a bf16 sum of exponentials would lose most of its digits.
        capped = part if cap is None else cap_(part.to(wide, copy=True), cap)
        log_probabilities = torch.log_softmax(capped, 1, dtype=wide)
        chosen = log_probabilities.gather(1, target).sum()
        plain -= chosen
        loss -= (1.0 - smoothing) * chosen
        if smoothing:
            loss -= smoothing * log_probabilities.mean(1).sum()
        if needs_gradient:
            # d(loss)/d(logits) = softmax - (1 - s) one_hot - s / vocabulary, rounded into the place of the logits
            gradient = log_probabilities.exp_()
            gradient.scatter_add_(1, target, torch.full_like(target, smoothing - 1.0, dtype=wide))
            if smoothing:
                gradient.sub_(smoothing / gradient.shape[1])
            part.copy_(through_cap_(gradient, capped, cap))
            del gradient
        del log_probabilities, capped  # otherwise they would live until the next iteration has allocated its own
    return loss, plain, correct, logits if needs_gradient else None


class ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T` against targets.

    The gradient of the weight is formed only where the weight is trained.

    Args:
        hidden: [N, width].
        weight: [vocabulary, width].
        targets: [N].
        cap: of a soft cap on the logits, or None.

    Returns:
        The sum in nats (a scalar, fp32 or wider), the same without smoothing (of which no gradient is taken), and how
        many targets have the largest logit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        smoothing: float,
        cap: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        total = torch.zeros((), dtype=wide, device=hidden.device)
        plain = torch.zeros_like(total)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None  # [N, width]
        # [vocabulary, width]; fp32, since every chunk adds into the same entries
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        for start in range(0, hidden.shape[0], chunk):
            rows = hidden[start : start + chunk]
            wanted = targets[start : start + chunk, None]
            loss, own, right, narrow = _one_chunk(
                rows, weight, wanted, wide, needs_hidden or needs_weight, smoothing, cap
            )
            total += loss
            plain += own
            correct += right
            # narrow: d(loss)/d(logits) [n, vocabulary], rounded to the precision of the model
            if narrow is not None and grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[start : start + chunk])  # [n, width]
            if narrow is not None and grad_weight is not None:
                grad_weight.add_(narrow.t() @ rows)  # summed in fp32 over chunks: [vocabulary, width]
            del narrow  # otherwise two chunks of logits would exist at one time
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(plain, correct)
        return total, plain, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients were formed in forward, for an incoming gradient of 1; the loss is a scalar, so they only scale.
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = gradients[0]
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * scale.to(grad_weight.dtype),
            *(None,) * 4,
        )


def cross_entropy_sum(
    hidden: Tensor, head: Tensor, targets: Tensor, chunk: int = CHUNK_ROWS, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy in nats and number of correct predictions; shapes as in `ChunkedCrossEntropy`."""
    total, _, correct = ChunkedCrossEntropy.apply(hidden, head, targets, chunk, 0.0, cap)
    return total, correct


def smoothed_cross_entropy_sum(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    smoothing: float,
    chunk: int = CHUNK_ROWS,
    cap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the cross-entropy with label smoothing, the sum without, and number of correct predictions.

    Args:
        smoothing: the share of the weight that is spread evenly over the vocabulary, at least 0 and below 1.
    """
    out: tuple[Tensor, Tensor, Tensor] = ChunkedCrossEntropy.apply(hidden, head, targets, chunk, smoothing, cap)
    return out
