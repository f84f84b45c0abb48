"""A key-value cache preallocated for the new tokens, so that a token costs one write and not a copy of the cache.

transformers' DynamicCache concatenates old and new keys at every step, which copies the whole cache. Here the
prompts of a batch go through the model in parts, each part with an ordinary cache, and then all parts are laid into
one buffer, padded on the left, with places for all new tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values [rows, heads, tokens, head] as views of buffers that have more places.

    Writing past the room raises a RuntimeError from torch: the decoder knows beforehand how many tokens will come.
    """

    def __init__(self, keys: Tensor, values: Tensor, num_tokens: int) -> None:
        super().__init__()
        self._buffers = (keys, values)
        self._num_tokens = num_tokens
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._look()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values; returns all so far."""
        start, self._num_tokens = self._num_tokens, self._num_tokens + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._num_tokens] = states
        self._look()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        keys, values = self._buffers
        # Indexing copies, so a row that was chosen twice has two independent caches. The room is copied with it.
        self._buffers = (keys[indices], values[indices])
        self._look()

    def _look(self) -> None:
        self.keys, self.values = (buffer[:, :, : self._num_tokens] for buffer in self._buffers)


def holds_keys(layer: Any) -> bool:
    """Whether a layer of a cache keeps anything: those that read the keys of another keep nothing themselves."""
    return isinstance(layer, DynamicLayer)


def expanded(cache: DynamicCache, num_rows: int) -> DynamicCache:
    """The same keys and values for every row, as views: nothing is copied until the first update."""
    # Shallow copies of cache and layers: setting their tensors leaves the shared prefix as it is.
    result = copy.copy(cache)
    result.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in filter(holds_keys, result.layers):
        # A view with stride 0 over the rows; the first update concatenates, and so makes it real.
        layer.keys = layer.keys.expand(num_rows, -1, -1, -1)
        layer.values = layer.values.expand(num_rows, -1, -1, -1)
    return result


def joined(parts: Sequence[DynamicCache], num_room: int, prefix_tokens: int = 0) -> DynamicCache:
    """The rows of all parts in one cache with room for more tokens; the parts are emptied on the way.

    Args:
        parts: caches of one model.
        num_room: tokens that may be appended to each row.
        prefix_tokens: length of a prefix that all rows share.

    Each part is padded to the longest: on the left, or, where its first `prefix_tokens` are a shared prefix, behind
    them. Padding holds zeros and must be masked.
    """
    num_tokens = max(_num_tokens(part) for part in parts)
    result = copy.copy(parts[0])
    result.layers = []
    for index in range(len(parts[0].layers)):
        layers = [part.layers[index] for part in parts]
        if not holds_keys(layers[0]):
            result.layers.append(layers[0])
            continue
        buffers = [
            _lay([getattr(layer, name) for layer in layers], num_tokens, num_room, prefix_tokens)
            for name in ("keys", "values")
        ]
        # A plain layer, also for sliding ones: rows that are joined fit whole into every window.
        result.layers.append(PreallocatedLayer(buffers[0], buffers[1], num_tokens))
        for layer in layers:
            # Freed layer by layer: at most one layer exists twice.
            layer.keys = layer.values = None
    return result


def _num_tokens(cache: DynamicCache) -> int:
    return max(int(layer.keys.shape[-2]) for layer in cache.layers if holds_keys(layer))


def _lay(states: Sequence[Tensor], num_tokens: int, num_room: int, prefix_tokens: int) -> Tensor:
    first = states[0]
    num_rows = sum(len(part) for part in states)
    # [all rows, kv_heads, tokens + room, head]; zeros, since garbage times a weight of 0 may be NaN
    buffer = first.new_zeros(num_rows, first.shape[1], num_tokens + num_room, first.shape[3])
    start = 0
    for part in states:
        rows = slice(start, start + len(part))
        num_own = part.shape[2] - prefix_tokens
        buffer[rows, :, :prefix_tokens] = part[:, :, :prefix_tokens]
        # Right-aligned, so that all rows write their next token into the same column.
        buffer[rows, :, num_tokens - num_own : num_tokens] = part[:, :, prefix_tokens:]
        start += len(part)
    return buffer
