"""What the forward of a model takes: by its signature, and for text alone where it also takes pictures."""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from luthier.ml.inference.models.architecture import is_composite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORWARD_ERRORS: Final = (
    RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, ImportError,
    AssertionError,
)  # fmt: skip
"""What the code of a model raises that cannot compute something."""


def accepted(module: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the keyword arguments that the module's forward has a parameter for, or takes as others."""
    names, is_open = _parameters(cast(Hashable, type(module)))
    return arguments if is_open else {name: value for name, value in arguments.items() if name in names}


def names_parameter(module: nn.Module, name: str) -> bool:
    """Whether the module's forward has a parameter of that very name."""
    return name in _parameters(cast(Hashable, type(module)))[0]


def text_inputs(causal: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """What else the forward of a model is given with ids [rows, T] that are text and nothing else."""
    also: dict[str, Any] = accepted(causal, {"use_cache": False})
    if is_composite(causal.config):  # which tokens represent pictures: none
        kinds = ("token_type_ids", "mm_token_type_ids")
        also |= {name: torch.zeros_like(ids) for name in kinds if names_parameter(causal, name)}
    return also


@lru_cache(maxsize=256)
def _parameters(kind: Hashable) -> tuple[frozenset[str], bool]:
    found = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    is_open = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in found.values())
    return frozenset(found), is_open
