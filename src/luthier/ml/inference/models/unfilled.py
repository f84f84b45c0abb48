"""Models without weights are built without filling their weights with random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

_FILLING: Final = frozenset(
    {
        *("normal_", "uniform_", "trunc_normal_", "orthogonal_"),
        *("kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"),
    }
)
"""Functions of torch.nn.init, and methods of a tensor, that draw random numbers."""


class Unfilled(TorchFunctionMode):
    """Within the block, and in this thread alone, tensors on the meta device are not filled with random numbers.

    They hold none. torch would go through its Python references for each of them all the same, 0.4 ms a tensor.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__name__", "") in _FILLING:
            filled = args[0] if args else named.get("tensor")
            if isinstance(filled, torch.Tensor) and filled.is_meta:
                return filled
        return func(*args, **named)
