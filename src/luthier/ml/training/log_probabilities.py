"""The log-probability of each learned token, with logits for one chunk of rows at a time.

What `cross_entropy.py` does for the sum of all rows, for each row by itself: a loss over whole completions multiplies
the gradient of each row by a number of its own, which is known only when all rows are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.ml.training.cross_entropy import CHUNK_ROWS
from luthier.ml.training.soft_cap import cap_, through_cap_


def _one_chunk(
    rows: Tensor,
    weight: Tensor,
    wanted: Tensor,
    wide: torch.dtype,
    needs_gradient: bool,
    temperature: float,
    cap: float | None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [n] of a chunk, and d(log-probability)/d(logits) [n, vocabulary] where it is needed.

    The logit of the token itself is computed in `wide`: a bf16 logit near 20 is off by up to 0.06, and a completion
    adds up hundreds of them, where a difference between two models' sums is what is learned from.
    """
    own = (rows.to(wide) * weight.index_select(0, wanted[:, 0]).to(wide)).sum(1, keepdim=True)
    own = cap_(own, cap) / temperature
    logits = cap_((rows @ weight.t()).to(wide), cap)  # [n, vocabulary]
    capped = None if cap is None or not needs_gradient else logits.scatter(1, wanted, own * temperature)
    # The exact logit also replaces the rounded one in the sum: otherwise p could exceed 1.
    logits = logits.div_(temperature).scatter_(1, wanted, own)
    # log p = own - logsumexp, with the largest logit taken off before exp so that nothing overflows
    largest = logits.amax(1, keepdim=True)  # [n, 1]
    exponents = logits.sub_(largest).exp_()
    sums = exponents.sum(1, keepdim=True)
    found = (own - largest - sums.log()).squeeze(1)
    if not needs_gradient:
        return found, None
    # d(log p)/d(logits) = one_hot - softmax, formed in place of the exponents
    exponents.div_(sums).neg_().scatter_add_(1, wanted, torch.ones_like(own))
    exponents.div_(temperature)
    return found, (exponents if capped is None else through_cap_(exponents, capped, cap)).to(rows.dtype)


class TokenLogProbabilities(torch.autograd.Function):
    """Log-probabilities of targets under softmax(`hidden @ weight.T` / temperature), in nats.

    Saved for the backward pass is the gradient of each row, [N, width]; where the weight is trained the logits are
    computed again.

    Args:
        hidden: [N, width].
        weight: [vocabulary, width].
        targets: [N].
        cap: of a soft cap on the logits, or None.

    Returns:
        [N], fp32 or wider.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        temperature: float,
        cap: float | None = None,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        found = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        # [N, width]: d(log p)/d(hidden) of each row, for an incoming gradient of 1
        unit = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            found[part], narrow = _one_chunk(
                hidden[part], weight, targets[part, None], wide, unit is not None, temperature, cap
            )
            if narrow is not None and unit is not None:
                torch.mm(narrow, weight, out=unit[part])
            del narrow  # otherwise two chunks of logits would exist at one time
        # Inputs are kept and logits computed twice: [N, vocabulary] for all rows would not fit.
        again = (hidden, weight, targets) if ctx.needs_input_grad[1] else (None, None, None)
        ctx.save_for_backward(unit, *again)
        ctx.chunk, ctx.temperature, ctx.cap = chunk, temperature, cap
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        unit, hidden, weight, targets = ctx.saved_tensors
        scale = gradients[0][:, None]  # [N, 1]: each row's gradient is scaled by a number of its own
        grad_hidden = None if unit is None else unit * scale.to(unit.dtype)
        if weight is None:
            return grad_hidden, *(None,) * 5
        wide = scale.dtype
        grad_weight = torch.zeros_like(weight, dtype=wide)
        for start in range(0, hidden.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            _, narrow = _one_chunk(hidden[part], weight, targets[part, None], wide, True, ctx.temperature, ctx.cap)
            assert narrow is not None
            # The row factor is folded into the logits' gradient, so that one product sums over the rows.
            grad_weight.add_((narrow * scale[part].to(narrow.dtype)).t() @ hidden[part])
            del narrow
        return grad_hidden, grad_weight.to(weight.dtype), *(None,) * 4


def token_log_probabilities(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    chunk: int = CHUNK_ROWS,
    temperature: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """The log-probability of each target in nats, [N]; shapes as in `TokenLogProbabilities`."""
    out: Tensor = TokenLogProbabilities.apply(hidden, head, targets, chunk, temperature, cap)
    return out


@torch.no_grad()
def entropy_sum(
    hidden: Tensor, head: Tensor, temperature: float = 1.0, chunk: int = CHUNK_ROWS, cap: float | None = None
) -> Tensor:
    """The entropies of softmax(`hidden @ head.T` / temperature) in nats, added up over all rows; no gradient.

    Args:
        cap: of a soft cap on the logits, or None.
    """
    total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    for rows in hidden.split(chunk):
        logarithms = (cap_((rows @ head.t()).to(total.dtype), cap) / temperature).log_softmax(1)  # [n, vocabulary]
        total -= (logarithms.exp() * logarithms).sum()
    return total


def summed_by_row(values: Tensor, learned: Sequence[int]) -> Tensor:
    """Sums of values [N] over the learned tokens of each row: [rows].

    Args:
        learned: how many of the N are each row's.
    """
    counts = torch.tensor(learned, device=values.device)
    # [N]: the row that each value belongs to
    owner = torch.repeat_interleave(torch.arange(len(learned), device=values.device), counts)
    return values.new_zeros(len(learned)).index_add(0, owner, values)
