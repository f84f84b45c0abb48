"""Keys and values of earlier prompts: a prompt that begins as one of them continues from there.

Chats send their whole conversation with every turn, and many requests begin with the same system prompt or examples.
What has been computed of a prompt is kept until the memory for it is full; the least recently used goes first. What it
has in common with an earlier one is kept once.

Beginnings are shared in whole blocks, so that prompts behind one system prompt continue from the same token and go
through the model together. Keys and values depend on the adapter, so that each adapter has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from luthier.ml.inference.decode import Batch, Prefix
from luthier.ml.inference.kv_cache import holds_keys, shallow

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache

BLOCK_TOKENS: Final = 32
_LEAST_BYTES: Final = 256 << 20
_SHARE: Final = 16


def cache_bytes(num_weight_bytes: int) -> int:
    """The memory of prompts beside the weights of a model: a sixteenth of these, and 256 MiB at least.

    That is some 10,000 tokens of models with 0.1 to 8 billion weights in 16 bits.
    """
    return max(_LEAST_BYTES, num_weight_bytes // _SHARE)


@dataclass(slots=True, eq=False)
class _Entry:
    """One prompt.

    Attributes:
        ids: its tokens.
        adapter: that read it; None for the base.
        scope: as `TextRequest.cache_scope`.
        start: how many of the tokens are those of `parent`.
        parent: the earlier prompt that it begins as; None where it shares nothing.
        cache: keys and values of the tokens from `start` on, [1, kv_heads, tokens, head] a layer.
        num_bytes: of them.
    """

    ids: tuple[int, ...]
    adapter: str | None
    scope: str | None
    start: int
    parent: _Entry | None
    cache: DynamicCache
    num_bytes: int


class PromptCache:
    """The prompts of one engine. Used by one thread only.

    Args:
        max_bytes: of their keys and values; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # The least recently used first; the parent of an entry always comes after it.
        self._entries: list[_Entry] = []

    @property
    def num_bytes(self) -> int:
        """Memory of all keys and values in bytes."""
        return sum(entry.num_bytes for entry in self._entries)

    def find(self, ids: Sequence[int], adapter: str | None, scope: str | None = None) -> Prefix | None:
        """The longest known beginning of a prompt; None if there is none of a block.

        It has whole blocks, and never all of the prompt: the last token has to be computed. What is written behind it
        changes nothing here.

        Args:
            ids: of the prompt.
            adapter: that reads it; None for the base.
            scope: only prompts of the same one are continued.
        """
        found, num_known = self._longest(ids, adapter, scope)
        num_tokens = min(num_known, len(ids) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        if found is None or not num_tokens:
            return None
        self._touch(found)
        return Prefix(num_tokens, _beginning(found, num_tokens))

    def add(self, ids: Sequence[int], adapter: str | None, batch: Batch, place: int, scope: str | None = None) -> None:
        """Keep a prompt that has just been computed.

        Args:
            ids: of the prompt.
            adapter: that has read it; None for the base.
            batch: in which it was computed, before anything was written behind it.
            place: of its row there.
            scope: for whose prompts it is kept.
        """
        parent, num_known = self._longest(ids, adapter, scope)
        if parent is not None:
            self._touch(parent)
        start = num_known // BLOCK_TOKENS * BLOCK_TOKENS
        if len(ids) - start <= BLOCK_TOKENS:  # hardly more than is there already
            return
        while parent is not None and parent.start >= start:
            parent = parent.parent
        # Counted before anything is copied.
        num_bytes = sum(_bytes_of_a_token(states) for states in _states(batch.cache)) * (len(ids) - start)
        if num_bytes > self._max_bytes:
            return
        while self.num_bytes + num_bytes > self._max_bytes:
            if self._entries[0] is parent:  # all that is left is what it continues
                return
            self._entries.pop(0)
        entry = _Entry(tuple(ids), adapter, scope, start, parent, _row(batch, place, start), num_bytes)
        self._entries.append(entry)
        self._touch(entry)

    def drop(self, adapter: str) -> None:
        """Forget what an adapter has read: another one may get its name."""
        self._entries = [entry for entry in self._entries if entry.adapter != adapter]

    def clear(self) -> None:
        """Forget all prompts."""
        self._entries = []

    def _longest(self, ids: Sequence[int], adapter: str | None, scope: str | None) -> tuple[_Entry | None, int]:
        """The entry with the longest beginning in common, and its tokens."""
        own = [entry for entry in self._entries if (entry.adapter, entry.scope) == (adapter, scope)]
        lengths = [num_common(entry.ids, ids) for entry in own]
        most = max(lengths, default=0)
        return (own[lengths.index(most)], most) if most else (None, 0)

    def _touch(self, entry: _Entry | None) -> None:
        """It is in use, and so are those that it continues: none of them may go before it."""
        while entry is not None:
            self._entries.remove(entry)
            self._entries.append(entry)
            entry = entry.parent


def num_common(known: Sequence[int], ids: Sequence[int]) -> int:
    """The number of leading tokens that both have."""
    most, start = min(len(known), len(ids)), 0
    # Whole slices are compared in C; only the last one token by token.
    while start < most and tuple(known[start : start + BLOCK_TOKENS]) == tuple(ids[start : start + BLOCK_TOKENS]):
        start += BLOCK_TOKENS
    while start < most and known[start] == ids[start]:
        start += 1
    return min(start, most)


def _states(cache: DynamicCache) -> list[Tensor]:
    return [states for layer in filter(holds_keys, cache.layers) for states in (layer.keys, layer.values)]


def _bytes_of_a_token(states: Tensor) -> int:
    """Of one row of [rows, heads, tokens, head]."""
    return int(states.shape[1] * states.shape[3] * states.element_size())


def _row(batch: Batch, place: int, start: int) -> DynamicCache:
    """The keys and values of one row from a token on, without padding, as copies: the batch ends with its rows."""
    columns = batch.mask[place].nonzero()[start:, 0]
    cache = shallow(batch.cache)
    for layer in filter(holds_keys, cache.layers):
        # [rows, heads, width, head] -> [1, heads, tokens, head]
        keys, values = (states[place : place + 1].index_select(2, columns) for states in (layer.keys, layer.values))
        layer.keys, layer.values = keys, values
    return cache


def _beginning(entry: _Entry, num_tokens: int) -> DynamicCache:
    """The keys and values of the first tokens of a prompt: views of what is kept, or copies where it is in parts."""
    parts: list[tuple[DynamicCache, int]] = []
    end, part = num_tokens, entry
    while end:
        if part.start < end:
            parts.append((part.cache, end - part.start))
            end = part.start
        if end:
            assert part.parent is not None  # what it does not hold itself
            part = part.parent
    parts.reverse()
    result = shallow(entry.cache)
    for index, layer in enumerate(result.layers):
        if holds_keys(layer):
            layer.keys = _joined([cache.layers[index].keys[:, :, :num] for cache, num in parts])
            layer.values = _joined([cache.layers[index].values[:, :, :num] for cache, num in parts])
            _count(layer, num_tokens)
    return result


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 2)


def _count(layer: Any, num_tokens: int) -> None:
    # Layers with a window count what has gone through them; others look at their keys.
    if getattr(layer, "is_sliding", False):
        layer.cumulative_length = num_tokens
