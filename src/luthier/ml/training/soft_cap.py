"""A soft cap on logits: cap * tanh(logits / cap), and its slope, for the fused losses that form logits by chunks.

Gemma Team, 2024, "Gemma 2: Improving Open Language Models at a Practical Size", arXiv:2408.00118, section 2.
"""

from __future__ import annotations

from torch import Tensor


def cap_(logits: Tensor, cap: float | None) -> Tensor:
    """The logits, capped in place; as they are with None."""
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def through_cap_(gradient: Tensor, capped: Tensor, cap: float | None) -> Tensor:
    """The gradient by capped logits turned, in place, into the one by the logits before the cap; as it is with None.

    d/dx of cap tanh(x / cap) is 1 - tanh^2.

    Args:
        capped: the logits behind the cap; they are overwritten.
    """
    if cap is None:
        return gradient
    return gradient.mul_(capped.div_(cap).square_().neg_().add_(1.0))
