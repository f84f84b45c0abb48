"""Tensors that are computed again on the way back, from what is kept anyway, instead of being kept beside it.

Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, section 4.2, drops what is cheap
to compute. Here that is the input of an adapted matrix: a normalisation keeps x / rms, which times its weight is what
the matrix reads; a gated MLP keeps gate and up, of which the input of its last matrix is made. One elementwise pass
more; the same operations on the same numbers, so the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

_NAME = "_luthier_recomputation"


class Recomputation(NamedTuple):
    """make(*parts) is the tensor, to the last bit."""

    make: Callable[..., Tensor]
    parts: tuple[Tensor, ...]


def mark_recomputable(tensor: Tensor, make: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """The same tensor, which now tells what reads it that make(*parts) is its equal.

    The parts must be kept for the way back by somebody else, and never be changed in place.
    """
    setattr(tensor, _NAME, Recomputation(make, tuple(part.detach() for part in parts)))
    return tensor


def recomputed(tensor: Tensor) -> Recomputation | None:
    """How a tensor can be computed again; None where it has to be kept."""
    return getattr(tensor, _NAME, None)


def save_input(ctx: Any, x: Tensor, *others: Tensor | None) -> None:
    """Keep x [..., width] for the way back, or what it can be made of again, and the others."""
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
