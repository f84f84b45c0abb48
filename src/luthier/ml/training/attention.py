"""Causal attention for training: blockwise on a CPU, FlexAttention for packed rows on a GPU, otherwise torch's own.

Rows are padded on the right only, so a causal model needs no padding mask: no real token ever attends to padding, and
hidden states at padding positions are never read.

On a CPU torch's fused kernel takes two to three times as long as the same work in bf16 products of blocks that fit the
processor's caches (docs/log.md has the figures). Short rows keep their probabilities for the backward pass, long rows,
where they would take most of the memory, recompute them.

On a GPU a micro-batch can be packed into one row, its examples end to end or behind the prefixes that they share:

    tokens     a0 a1 a2 | b0 b1 | c0 c1 c2 c3
    positions  0  1  2  | 0  1  | 0  1  2  3

The layout is that of prefix_attention.py. Only those 128 x 128 blocks of queries and keys are computed that contain an
allowed pair. They are derived from the lengths alone (`allowed_blocks`), so a full mask over all token pairs is never
materialised.

Sources: Dong et al., 2024, "FlexAttention", arXiv:2412.05496.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

from luthier.ml.training.prefix_attention import BLOCK_SCORES, PrefixLayout, shared_attention

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK_TOKENS = 128
"""Side of a block of FlexAttention's mask."""

I64 = NDArray[np.int64]


class Tokens(NamedTuple):
    """Per token of a row, [tokens]: its segment (a prefix or a suffix), the segment that this one continues (itself for
    a prefix), and its position."""

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
    """Which query x key blocks are partly and which are fully visible: bool [num_blocks, num_blocks].

    Attributes:
        partial: pairs of blocks where the mask has to be evaluated.
        full: pairs of blocks where every query sees every key.
    """

    partial: NDArray[np.bool_]
    full: NDArray[np.bool_]


def allowed_blocks(layout: PrefixLayout, window: int | None, block: int = BLOCK_TOKENS) -> Blocks:
    """The blocks that contain an allowed pair, derived from the two key intervals that each token sees.

    A block that a prefix and what follows it cover together counts as partial: the mask is then evaluated there
    although it hides nothing, with the same result.

    Args:
        layout: of the row.
        window: tokens that a token sees, itself included; None for all before it.
        block: side of a block, in tokens.
    """
    segment, before, position = tokens_of(layout)
    tokens = np.arange(len(segment))
    sizes = np.array((*layout.prefix_tokens, *layout.suffix_tokens), dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    first_position = np.zeros_like(position) if window is None else np.maximum(0, position - window + 1)
    # First visible key in the token's own segment and, below, in the prefix before it.
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
    """FlexAttention's mask of a layout.

    Args:
        layout: of the row.
        window: as for `allowed_blocks`.
        device: of the mask.
    """
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
    """Number of allowed blocks per row of blocks, [1, 1, n], and block indices, allowed ones first, [1, 1, n, n]."""
    numbers = np.argsort(~blocks, axis=1, kind="stable")  # stable: allowed blocks first, in ascending order
    both = (blocks.sum(1, dtype=np.int32)[None, None], numbers.astype(np.int32)[None, None])
    count, order = (torch.from_numpy(np.ascontiguousarray(found)).to(device) for found in both)
    return count, order


def _mask_function(layout: PrefixLayout, window: int | None, device: torch.device) -> Callable[..., Tensor]:
    """The mask as a function of query and key index, in the form that FlexAttention compiles."""
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
    """A layout on a device, with its masks, which are built once per row and shared by all layers."""

    layout: PrefixLayout
    device: torch.device
    masks: dict[int | None, Any] = field(default_factory=dict)

    def mask(self, sliding_window: int | None) -> Any:
        """The mask for layers with this attention window (None: unlimited).

        A compiled layer only looks it up; building the mask is not part of the compiled graph.
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
    """The packed row of a layout; the last two are cached for steps that repeat them."""
    return PackedRow(layout, device)


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention compiled for rows of any length: the length is an argument of the kernel, not part of it.

    At most two kernels: torch specialises on sizes of one, so rows of a single block get a separate kernel.
    """
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float, sliding_window: int | None
) -> Tensor:
    """Attention inside a row of several examples. Inside a compiled layer this call is part of the compiled graph.

    Args:
        query: [1, heads, row, head].
        key: [1, kv_heads, row, head].
        value: [1, kv_heads, row, head].
        row: which tokens belong to the same example.
        scale: that the products are multiplied with.
        sliding_window: the most tokens that a token attends to; None for all before it.

    Returns:
        [1, heads, row, head].
    """
    mask = row.mask(sliding_window)
    if torch.compiler.is_compiling():
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    return _compiled_flex_attention()(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)


NAME = "luthier_causal"
KEPT_MAX_TOKENS = 1024
"""Rows of at most this many tokens keep the probabilities of a CPU's attention."""


class NotComputedError(ValueError):
    """An attention variant that is not supported here."""


class _BlockedCausal(torch.autograd.Function):
    """softmax(q k^T * scale + mask) v, a block of queries at a time.

    The query heads that share a key head are stacked along the rows, so that grouped attention is one batched product
    and no key is copied. Each block of queries is multiplied only with the keys up to its last one, and the number of
    rows per block is chosen to fit the processor's caches.

    Args:
        q: [batch, kv_heads, groups, T, head].
        k, v: [batch, kv_heads, T, head].
        mask: additive mask. [T, T] where it hides more than future tokens (`is_full`), otherwise the mask of one block,
            at most [BLOCK_TOKENS, BLOCK_TOKENS].
        keeps: whether probabilities are saved for the backward pass; otherwise they are recomputed there.

    Returns:
        Attention outputs, of the shape of q.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, is_full: bool, scale: float, keeps: bool
    ) -> Tensor:
        out, scaled = torch.empty_like(q), []
        kept = []
        for rows, queries, keys in _blocks(q):
            # Scaled once here: the backward pass reads the scaled queries too.
            block = (q[rows, :, :, queries] * scale).contiguous()  # [rows, kv_heads, groups, queries, head]
            # [rows * kv_heads, groups * queries, keys]
            probabilities = _probabilities(block, k[rows, :, keys], _part(mask, queries, is_full))
            out[rows, :, :, queries] = torch.bmm(probabilities, v[rows, :, keys].flatten(0, 1)).view(block.shape)
            scaled.append(block)
            if keeps:
                kept.append(probabilities)
        ctx.save_for_backward(k, v, mask, *scaled, *kept)
        ctx.scale, ctx.is_full, ctx.keeps = scale, is_full, keeps
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = gradients
        k, v, mask, *saved = ctx.saved_tensors
        is_one_block = k.shape[2] <= BLOCK_TOKENS
        # Several blocks add into the same keys: in bf16 each addition would round, so their sums are held in fp32.
        wide = k.dtype if is_one_block else torch.promote_types(k.dtype, torch.float32)
        grad_q = torch.empty_like(grad_out)
        grad_k, grad_v = (torch.empty_like(k, dtype=wide) for _ in range(2))
        blocks = list(_blocks(grad_out))
        for index, (rows, queries, keys) in reversed(list(enumerate(blocks))):
            scaled, shape = saved[index], k[rows, :, keys].shape
            if ctx.keeps:
                probabilities = saved[len(blocks) + index]
            else:
                probabilities = _probabilities(scaled, k[rows, :, keys], _part(mask, queries, ctx.is_full))
            # Blocks are processed backwards: the last queries, which see all keys, come first and write. Earlier blocks
            # then add, so the uninitialised buffers never have to be zeroed.
            put = Tensor.copy_ if keys.stop == k.shape[2] else Tensor.add_
            # [rows * kv_heads, groups * queries, head]
            grad = grad_out[rows, :, :, queries].contiguous().flatten(2, 3).flatten(0, 1)
            put(grad_v[rows, :, keys], torch.bmm(probabilities.transpose(1, 2), grad).view(shape))
            grad_p = torch.bmm(grad, v[rows, :, keys].flatten(0, 1).transpose(1, 2))  # as the probabilities
            grad_s = torch._softmax_backward_data(grad_p, probabilities, -1, probabilities.dtype)
            # The scores were made of scale * q: by the chain rule the factor returns for q; for k it is in `scaled`.
            found = torch.bmm(grad_s, k[rows, :, keys].flatten(0, 1))
            grad_q[rows, :, :, queries] = found.mul_(ctx.scale).view(scaled.shape)
            stacked = scaled.flatten(2, 3).flatten(0, 1)
            put(grad_k[rows, :, keys], torch.bmm(grad_s.transpose(1, 2), stacked).view(shape))
        return grad_q, grad_k.to(k.dtype), grad_v.to(k.dtype), None, None, None, None


def _probabilities(scaled: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """[rows * kv_heads, groups * queries, keys] of a block.

    Args:
        scaled: [rows, kv_heads, groups, queries, head].
        k: [rows, kv_heads, keys, head], the keys up to the last query of the block.
        mask: of the block's queries, over the last of the keys; all keys before these are seen.
    """
    scores = torch.bmm(scaled.flatten(2, 3).flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    scores.view(*scaled.shape[:4], -1)[..., -mask.shape[1] :].add_(mask)
    return torch.softmax(scores, -1)


def _part(mask: Tensor, queries: slice, is_full: bool) -> Tensor:
    num = queries.stop - queries.start
    return mask[queries, : queries.stop] if is_full else mask[:num, :num]


def _blocks(q: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Rows, queries and keys of each block of attention: q [batch, kv_heads, groups, T, head]."""
    num_rows, num_kv_heads, num_groups, num_tokens, _ = q.shape
    for first in range(0, num_tokens, BLOCK_TOKENS):
        last = min(num_tokens, first + BLOCK_TOKENS)
        # Rows whose scores [rows, kv_heads, groups, queries, keys] are BLOCK_SCORES numbers at most together.
        each = max(1, BLOCK_SCORES // (num_kv_heads * num_groups * (last - first) * last))
        for start in range(0, num_rows, each):
            yield slice(start, start + each), slice(first, last), slice(0, last)


def _causal_mask(num_tokens: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[T, T] additive mask: 0 where a token may look, -inf elsewhere; `window` counts the token itself."""
    allowed = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
    if window is not None:
        allowed = allowed.triu(1 - window)
    return torch.zeros(num_tokens, num_tokens, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


# Every layer of a step needs the same mask.
_kept_causal_mask = lru_cache(maxsize=16)(_causal_mask)


def causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    prefix_layout: PrefixLayout | PackedRow | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls.

    Unsupported variants (score capping, sinks) are rejected, never approximated.

    Args:
        module: the layer that calls, named in errors.
        query: [batch, heads, T, head].
        key: [batch, kv_heads, T, head].
        value: [batch, kv_heads, T, head].
        attention_mask: None; masks are derived from the layout.
        scaling: factor of the scores; None takes 1 / sqrt(head).
        dropout: 0.
        sliding_window: tokens that a token sees, itself included; None for all before it.
        softcap: None.
        s_aux: None.
        prefix_layout: how a micro-batch is packed into one row with shared prefixes (prefix_attention.py), or such a
            row with its FlexAttention masks (`PackedRow`); None for plain rows.

    Returns:
        [batch, T, heads, head].

    Raises:
        NotComputedError: a mask, dropout, score capping or sinks are asked for.
    """
    if softcap is not None or s_aux is not None or attention_mask is not None or dropout:
        raise NotComputedError(
            f"{type(module).__name__} asks for softcap={softcap}, sinks={s_aux is not None}, "
            f"mask={attention_mask is not None}, dropout={dropout}: this attention computes none of these"
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if prefix_layout is None:
        return _causal(query, key, value, scale, sliding_window).transpose(1, 2).contiguous(), None
    if isinstance(prefix_layout, PackedRow):
        out = packed_attention(query, key, value, prefix_layout, scale, sliding_window)
    else:
        out = _uncompiled(query, key, value, prefix_layout, scale, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def _in_two_parts(
    query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout, scale: float, sliding_window: int | None
) -> Tensor:
    """Attention of the prefixes alone, then of the suffixes: [1, heads, tokens of the row, head]."""
    length = layout.longest_prefix + layout.longest_suffix
    window = sliding_window if sliding_window is not None and length > sliding_window else None
    causal = partial(_causal, scale=scale, sliding_window=sliding_window)
    keeps, blocked = length <= KEPT_MAX_TOKENS, is_blocked(query.device)
    return shared_attention(query, key, value, layout, causal, scale, window, is_blocked=blocked, keeps=keeps)


# Its sizes differ in every micro-batch, and each new size would trigger a recompilation.
_uncompiled: Callable[..., Tensor] = torch.compiler.disable(_in_two_parts)


def is_blocked(device: torch.device) -> bool:
    """Whether attention on this device is computed as blockwise products instead of by torch's kernels."""
    return device.type == "cpu"


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float, sliding_window: int | None) -> Tensor:
    """Plain causal attention: [batch, heads, T, head] from query of that shape and key, value of kv_heads."""
    num_tokens, num_kv_heads = query.shape[2], key.shape[1]
    window = sliding_window if sliding_window is not None and num_tokens > sliding_window else None
    is_compiling = torch.compiler.is_compiling()
    if is_blocked(query.device) and not is_compiling:
        # A window hides keys before the last block too, so it needs the mask of the whole row.
        side = num_tokens if window is not None else min(num_tokens, BLOCK_TOKENS)
        hidden = _kept_causal_mask(side, window, query.dtype, query.device)
        grouped = query.unflatten(1, (num_kv_heads, -1))  # [batch, kv_heads, groups, T, head]
        keeps = num_tokens <= KEPT_MAX_TOKENS
        # Contiguous, so that rows and heads of every block flatten into a view, without a copy.
        k, v = key.contiguous(), value.contiguous()
        out: Tensor = _BlockedCausal.apply(grouped, k, v, hidden, window is not None, scale, keeps)
        return out.flatten(1, 2)
    make = _causal_mask if is_compiling else _kept_causal_mask  # a traced call must not read an lru_cache
    mask = None if window is None else make(num_tokens, window, query.dtype, query.device)
    found: Tensor = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return found


def install() -> str:
    """Register the attention with transformers and return its name."""
    AttentionInterface.register(NAME, causal_attention)
    return NAME
