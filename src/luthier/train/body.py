"""The body of a model: what makes hidden states of tokens, called with what its signature takes and nothing else.

Bodies differ in what they accept: those with ALiBi or with a state count positions by themselves and take none. What
is not passed makes no difference that goes unseen: `forward_proof` compares the result with the model's own forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    from luthier.train.packed_attention import PackedRow
    from luthier.train.prefix_attention import PrefixLayout

    RowLayout = PrefixLayout | PackedRow


def last_hidden_states(
    body: nn.Module,
    positions: Tensor,
    layout: RowLayout | None = None,
    *,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """Last hidden states [rows, T, width] of ids [rows, T] or of embeddings [rows, T, width].

    positions: [rows or 1, T]. layout: where several examples lie in one row; attention reads it.
    """
    shared = {} if layout is None else {"prefix_layout": layout}
    inputs = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    also = accepted(body, {"position_ids": positions, "use_cache": False})
    out: Tensor = body(**inputs, **also, **shared).last_hidden_state
    return out


def accepted(module: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the keyword arguments that the module's forward has a parameter for, or takes as others."""
    names, is_open = _parameters(cast(Hashable, type(module)))
    return arguments if is_open else {name: value for name, value in arguments.items() if name in names}


def names_parameter(module: nn.Module, name: str) -> bool:
    """Whether the module's forward has a parameter of that very name."""
    return name in _parameters(cast(Hashable, type(module)))[0]


def attention_of(body: nn.Module) -> str:
    """The name under which transformers looks up what computes the attention of a body."""
    found: str = body.config._attn_implementation  # type: ignore[union-attr, assignment]
    return found


def use_attention(body: nn.Module, name: str) -> None:
    """Have the attention of a body computed by what transformers knows under that name.

    Set in the config of every module inside, since parts of a composite model may hold a config of their own.
    """
    held = (getattr(module, "config", None) for module in body.modules())
    for config in {id(config): config for config in held if isinstance(config, PreTrainedConfig)}.values():
        config._attn_implementation_internal = name


@contextmanager
def attention_by(body: nn.Module, name: str) -> Iterator[None]:
    """Inside this block the attention of a body is computed by what is known under that name."""
    before = attention_of(body)
    use_attention(body, name)
    try:
        yield
    finally:
        use_attention(body, before)


@lru_cache(maxsize=256)
def _parameters(kind: Hashable) -> tuple[frozenset[str], bool]:
    found = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    is_open = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in found.values())
    return frozenset(found), is_open
