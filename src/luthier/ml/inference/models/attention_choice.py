"""Which function computes the attention of a loaded model, by its name in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedConfig


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
