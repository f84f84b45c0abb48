"""Arithmetic in float64 throughout: the truth that results in float32 are held against.

A model in float64 is not yet one: norms, softmaxes and rotary embeddings turn their input into float32 by themselves,
and what they round there is carried on. Here every float32 that an operation asks for becomes float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Wide(TorchDispatchMode):
    """Operations as they are, with float64 where they name float32; of forward and backward."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """The result of one operation."""
        del types
        named: Mapping[str, Any] = kwargs or {}
        return func(*map(_wide, args), **{name: _wide(value) for name, value in named.items()})


@contextmanager
def all_in_float64() -> Iterator[None]:
    """Compute in float64 whatever would be computed in float32; for models and tensors that are float64 already."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide():
            yield
    finally:
        torch.set_default_dtype(before)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
