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

_NAME = "_luthier_recomputed"


class Recomputed(NamedTuple):
    """make(*parts) is the tensor, to the last bit."""

    make: Callable[..., Tensor]
    parts: tuple[Tensor, ...]


def can_recompute(tensor: Tensor, make: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """The same tensor, which now tells what reads it that make(*parts) is its equal.

    The parts must be kept for the way back by somebody else, and never be changed in place.
    """
    setattr(tensor, _NAME, Recomputed(make, tuple(part.detach() for part in parts)))
    return tensor


def recomputed(tensor: Tensor) -> Recomputed | None:
    """How a tensor can be computed again; None where it has to be kept."""
    return getattr(tensor, _NAME, None)


def save_rows(ctx: Any, x: Tensor, how: Recomputed | None, *others: Tensor | None) -> None:
    """Keep x [..., width] as rows for the way back, or what it is made of, and the others."""
    ctx.make = None if how is None else how.make
    ctx.num_parts = 1 if how is None else len(how.parts)
    parts = (x.reshape(-1, x.shape[-1]),) if how is None else how.parts
    ctx.save_for_backward(*parts, *others)


def saved_rows(ctx: Any) -> tuple[Tensor, Any]:
    """The rows [N, width] that `save_rows` kept or that are made anew, and the others."""
    saved = ctx.saved_tensors
    parts, others = saved[: ctx.num_parts], saved[ctx.num_parts :]
    x = parts[0] if ctx.make is None else ctx.make(*parts)
    return x.reshape(-1, x.shape[-1]), others
