"""Tensors that are recomputed in the backward pass from tensors that are saved anyway, instead of being saved too.

Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, section 4.2, drops what is cheap
to compute. Here that is the input of an adapted matrix: a normalisation saves x / rms, and the input of the matrix is
that times the norm's weight; a gated MLP saves gate and up, and the input of its last matrix follows from these. The
price is one elementwise pass; the operations and numbers are the same, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

_NAME = "_luthier_recomputation"


class Recomputation(NamedTuple):
    """How to recompute a tensor: make(*parts) equals it bit for bit."""

    make: Callable[..., Tensor]
    parts: tuple[Tensor, ...]


def mark_recomputable(tensor: Tensor, make: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """Mark a tensor as recomputable: make(*parts) gives the same bits. Returns the tensor.

    The parts must be saved for the backward pass elsewhere, and never be changed in place.
    """
    # Detached, so that the mark keeps no part of the graph alive.
    setattr(tensor, _NAME, Recomputation(make, tuple(part.detach() for part in parts)))
    return tensor


def recomputed(tensor: Tensor) -> Recomputation | None:
    """How a tensor can be computed again; None where it has to be kept."""
    return getattr(tensor, _NAME, None)


def save_input(ctx: Any, x: Tensor, *others: Tensor | None) -> None:
    """Save x [..., width] for the backward pass, or the parts it can be recomputed from, and the other tensors."""
    # An unmarked input is its own part: the backward pass then has one path.
    how = recomputed(x) or Recomputation(_itself, (x,))
    ctx.make, ctx.num_parts = how.make, len(how.parts)
    ctx.save_for_backward(*how.parts, *others)


def saved_rows(ctx: Any) -> tuple[Tensor, Any]:
    """The input that `save_input` kept, or made again, as rows [N, width], and the others."""
    saved = ctx.saved_tensors
    x = ctx.make(*saved[: ctx.num_parts])
    return x.reshape(-1, x.shape[-1]), saved[ctx.num_parts :]


def _itself(x: Tensor) -> Tensor:
    return x
