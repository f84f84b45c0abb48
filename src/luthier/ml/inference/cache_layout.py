"""What a model's cache holds, by its config: keys and values, windows, recurrent states, stretched positions.

What is read here decides where a path is proved, never that it holds (`decoding_proof`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

_WINDOWS: Final = ("window", "window_size")
# Layers that hold keys and values by position, or nothing: rows can be padded, joined and cut.
_HELD_LAYERS: Final = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)


def smallest_window(config: Any) -> int | None:
    """The tokens that the narrowest window or chunk of the model holds; None where all of its layers see everything.

    Some models have windows that their cache does not know; the config names them.
    """
    # By name: configs have `sliding_window`, `attention_window_size` and others for one thing.
    windows = [value for name in vars(config) if name.endswith(_WINDOWS) and _is_size(value := getattr(config, name))]
    with suppress(Exception):  # a config of a kind that this cache does not know: `why_not_cacheable` says so
        layers = DynamicCache(config=config).layers
        windows += [int(layer.sliding_window) for layer in layers if getattr(layer, "is_sliding", False)]
    return min(windows, default=None)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def rope_border(config: Any) -> int | None:
    """The length in tokens over which all positions of a text mean something else ("longrope"); None where none does.

    Ding et al., 2024, "LongRoPE", arXiv:2402.13753.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    found: list[Any] = [
        one.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        # One set of parameters for all layers, or one for each kind of layer.
        for one in (rope, *(part for part in rope.values() if isinstance(part, dict)))
        if one.get("rope_type") == "longrope"
    ]
    return min((int(one) for one in found if _is_size(one)), default=None)


def why_not_cacheable(config: Any) -> str:
    """Why our own cache cannot hold what the model keeps; empty where it can."""
    try:
        layers = DynamicCache(config=config).layers
    except Exception as error:  # noqa: BLE001 - what it raises for a config that it does not know is of many kinds
        return f"no cache of keys and values can be made from its config: {type(error).__name__}: {error}"
    # Exact types: a subclass may keep more than its base does.
    others = sorted({type(layer).__name__ for layer in layers if type(layer) not in _HELD_LAYERS})
    return f"it keeps a state of {', '.join(others)}, which batches of unlike length cannot share" if others else ""
