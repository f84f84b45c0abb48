"""FlexAttention for a micro-batch packed into one row: its examples end to end, or behind the prefixes they share.

    tokens     a0 a1 a2 | b0 b1 | c0 c1 c2 c3
    positions  0  1  2  | 0  1  | 0  1  2  3

The layout is that of prefix_attention.py; rows with nothing in common are suffixes of one prefix of no tokens. On a
CPU attention pads them to the longest, there. FlexAttention (Dong et al., 2024, arXiv:2412.05496) pads nothing on a
GPU: of the blocks of 128 x 128 queries and keys it computes those in which some token may look at another. Which these
are is counted from the lengths alone (`allowed_blocks`), so that no mask over all pairs of tokens ever exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.ml.training.prefix_attention import PrefixLayout

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK_TOKENS = 128
"""Side of a block of FlexAttention's mask."""

I64 = NDArray[np.int64]


class Tokens(NamedTuple):
    """Of each token of a row, [tokens]: the segment (a prefix or a suffix) that it lies in, the one that its segment
    continues from (its own for a prefix), and its position."""

    segment: I64
    before: I64
    position: I64


def tokens_of(layout: PrefixLayout) -> Tokens:
    """The tokens of a row, in order. Segments are numbered in order, prefixes first."""
    num_groups = layout.num_groups
    sizes = np.array((*layout.prefix_tokens, *layout.suffix_tokens), dtype=np.int64)
    numbers = np.arange(len(sizes))
    parents = np.where(numbers < num_groups, numbers, (numbers - num_groups) // layout.num_suffixes)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    ahead = np.where(numbers < num_groups, 0, sizes[parents])
    segment = np.repeat(numbers, sizes)
    return Tokens(segment, parents[segment], np.arange(len(segment)) - starts[segment] + ahead[segment])


class Blocks(NamedTuple):
    """Which blocks of queries x keys are looked at in part, and which in whole: bool [num_blocks, num_blocks]."""

    partial: NDArray[np.bool_]
    full: NDArray[np.bool_]


def allowed_blocks(layout: PrefixLayout, window: int | None, block: int = BLOCK_TOKENS) -> Blocks:
    """The blocks in which some token may look at another, counted from the two intervals of keys that a token sees.

    A block that a prefix and what follows it cover together counts as partial: the mask is then evaluated there
    although it hides nothing, with the same result.
    """
    segment, before, position = tokens_of(layout)
    tokens = np.arange(len(segment))
    sizes = np.array((*layout.prefix_tokens, *layout.suffix_tokens), dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    first_position = np.zeros_like(position) if window is None else np.maximum(0, position - window + 1)
    # First key of a token's own segment that it sees, and below the first one of the prefix before it.
    own = np.maximum(starts[segment], tokens - (position - first_position))
    ahead = np.where(segment == before, 0, sizes[before])
    prefix_start = starts[before] + np.minimum(first_position, ahead)
    num = -(-len(tokens) // block)
    # Difference arrays: +1 where an interval of blocks begins and -1 behind its end; a cumulative sum then counts, for
    # each block of keys, the queries that see some of it (`seen`) and all of it (`whole`). O(tokens), not O(tokens^2).
    seen, whole = np.zeros((num, num + 1), np.int64), np.zeros((num, num + 1), np.int64)
    for start, stop in ((own, tokens + 1), (prefix_start, starts[before] + ahead)):
        some = stop > start
        rows, low, high = tokens[some] // block, start[some], stop[some]
        np.add.at(seen, (rows, low // block), 1)
        np.add.at(seen, (rows, (high - 1) // block + 1), -1)
        first, last = -(-low // block), high // block
        inside = last > first
        np.add.at(whole, (rows[inside], first[inside]), 1)
        np.add.at(whole, (rows[inside], last[inside]), -1)
    full = np.cumsum(whole, 1)[:, :num] == block  # every query of the block sees every key of it
    return Blocks(partial=(np.cumsum(seen, 1)[:, :num] > 0) & ~full, full=full)


def block_mask(layout: PrefixLayout, window: int | None, device: torch.device) -> BlockMask:
    """FlexAttention's mask of a layout."""
    from torch.nn.attention.flex_attention import BlockMask

    num_tokens = sum(layout.prefix_tokens) + sum(layout.suffix_tokens)
    partial, full = allowed_blocks(layout, window)
    return BlockMask.from_kv_blocks(
        *_in_order(partial, device),
        *_in_order(full, device),
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=_mask_function(layout, window, device),
        seq_lengths=(num_tokens, num_tokens),
    )


def _in_order(blocks: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """[1, 1, n] how many blocks a row of blocks has, and [1, 1, n, n] their numbers, then those of the others."""
    numbers = np.argsort(~blocks, axis=1, kind="stable")  # stable: allowed blocks first, in ascending order
    both = (blocks.sum(1, dtype=np.int32)[None, None], numbers.astype(np.int32)[None, None])
    count, order = (torch.from_numpy(np.ascontiguousarray(found)).to(device) for found in both)
    return count, order


def _mask_function(layout: PrefixLayout, window: int | None, device: torch.device) -> Callable[..., Tensor]:
    """The mask as a function of the numbers of query and key, in the form that FlexAttention compiles."""
    segment, before, position = (torch.from_numpy(found.astype(np.int32)).to(device) for found in tokens_of(layout))

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        # A token sees its own segment and the prefix that this continues from, both up to its position.
        seen = (segment[key] == segment[query]) | (segment[key] == before[query])
        return seen & (position[key] <= position[query])

    if window is None:
        return causal

    def windowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return causal(batch, head, query, key) & (position[query] - position[key] < window)

    return windowed


@dataclass(slots=True)
class PackedRow:
    """A layout on a device, with its masks. They are made once a row, whatever the number of layers."""

    layout: PrefixLayout
    device: torch.device
    masks: dict[int | None, Any] = field(default_factory=dict)

    def mask(self, sliding_window: int | None) -> Any:
        """The mask for layers that look back that far (None: to the start).

        A compiled layer only looks it up: what is counted of a layout is no part of what is compiled.
        """
        if sliding_window not in self.masks:
            longest = self.layout.longest_prefix + self.layout.longest_suffix
            hides_nothing = sliding_window is not None and longest <= sliding_window
            self.masks[sliding_window] = (
                self.mask(None) if hides_nothing else block_mask(self.layout, sliding_window, self.device)
            )
        return self.masks[sliding_window]


@lru_cache(maxsize=2)
def packed_row(layout: PrefixLayout, device: torch.device) -> PackedRow:
    """The row of a layout; the last two are kept, for steps that repeat them."""
    return PackedRow(layout, device)


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention compiled for rows of any length: the length is an argument of the kernel, not part of it.

    Two kernels at most: torch takes sizes of one apart, so rows of a single block have one of their own.
    """
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float, sliding_window: int | None
) -> Tensor:
    """query: [1, heads, row, head]; key, value: [1, kv_heads, row, head]; returns [1, heads, row, head].

    In a compiled layer it is a part of what is compiled.
    """
    mask = row.mask(sliding_window)
    if torch.compiler.is_compiling():
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    return _compiled_flex_attention()(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
