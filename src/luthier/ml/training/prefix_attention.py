"""Causal attention for a micro-batch with groups of rows that share a prefix: each prefix is computed once.

The micro-batch is packed into one row without padding: the prefixes of G groups, then the K suffixes of each group.
Examples with the same system prompt form one large group; the two completions of a preference pair, or the samples of a
prompt, form one group each.

    tokens     p0 p1 p2 q0 q1 | a0 a1 | b0 b1 b2 | c0 | d0 d1        p with suffixes a, b; q with suffixes c, d
    positions  0  1  2  0  1  | 3  4  | 3  4  5  | 2  | 2  3

A suffix sees all of its group's prefix and itself, and nothing else; a causal model computes the prefix without
seeing what follows, so outputs and gradients equal those of separate rows (a shared prefix receives the sum of its
rows' gradients). The idea is that of cascade inference and of prefix sharing in preference training (Wang & Hegde,
2024, "Accelerating Direct Preference Optimization with Prefix Sharing", arXiv:2410.20305, section 3); the two-part
attention below needs no mask over the whole row. Only attention pads: the linear layers, which do nearly all of the
work, see no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_SCORES = 1 << 20
"""Number of scores per block: in bf16 they and the results derived from them fit into the caches of two cores."""


@dataclass(frozen=True, slots=True)
class PrefixLayout:
    """Sizes of a micro-batch with shared prefixes.

    Attributes:
        prefix_tokens: length of each group's prefix, [G].
        suffix_tokens: length of each suffix, group after group, [G * K].
    """

    prefix_tokens: tuple[int, ...]
    suffix_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        num_groups, num = len(self.prefix_tokens), len(self.suffix_tokens)
        if not num or num % num_groups or min(self.suffix_tokens) < 1 or min(self.prefix_tokens) < 0:
            raise ValueError(
                f"{num_groups} prefixes of {self.prefix_tokens} tokens with {num} suffixes of {self.suffix_tokens}: "
                "each beginning needs equally many suffixes, of one token or more"
            )

    @property
    def num_groups(self) -> int:
        """G, the number of prefixes."""
        return len(self.prefix_tokens)

    @property
    def num_suffixes(self) -> int:
        """K, the suffixes of each prefix."""
        return len(self.suffix_tokens) // len(self.prefix_tokens)

    @property
    def longest_prefix(self) -> int:
        """P, the padded prefix length in attention."""
        return max(self.prefix_tokens)

    @property
    def longest_suffix(self) -> int:
        """S, the padded suffix length in attention."""
        return max(self.suffix_tokens)

    def starts(self) -> tuple[list[int], list[int]]:
        """The start of each prefix and each suffix in the row."""
        ends = [0, *accumulate((*self.prefix_tokens, *self.suffix_tokens))]
        return ends[: self.num_groups], ends[self.num_groups : -1]

    def positions(self, device: torch.device) -> Tensor:
        """Positions [1, tokens of the row]; those of a suffix continue from its prefix."""
        pieces = [torch.arange(n) for n in self.prefix_tokens]
        for number, own in enumerate(self.suffix_tokens):
            before = self.prefix_tokens[number // self.num_suffixes]
            pieces.append(torch.arange(before, before + own))
        return torch.cat(pieces)[None].to(device)


@lru_cache(maxsize=16)
def _indices(layout: PrefixLayout, device: str) -> tuple[Tensor, Tensor]:
    """The index maps that pad a row for attention and back.

    [G * P + G * K * S], for each padded position the index of its token in the row (an arbitrary one for padding);
    [tokens of the row], for each token its padded position.
    """
    padded, packed = [], []
    place = 0
    first, others = layout.starts()
    for starts, sizes, room in (
        (first, layout.prefix_tokens, layout.longest_prefix),
        (others, layout.suffix_tokens, layout.longest_suffix),
    ):
        for start, size in zip(starts, sizes, strict=True):
            tokens = torch.arange(start, start + size)
            padded.append(F.pad(tokens, (0, room - size)))
            packed.append(torch.arange(place, place + size))
            place += room
    return torch.cat(padded).to(device), torch.cat(packed).to(device)


class _Pad(torch.autograd.Function):
    """Pads the tokens (dimension 2) of a row for attention. The content of padding is never read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padded: Tensor, packed: Tensor) -> Tensor:
        ctx.save_for_backward(packed)
        # [1, heads, T, head] -> [1, heads, G * P + G * K * S, head]
        return x.index_select(2, padded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        return gradients[0].index_select(2, packed), None, None


class _Unpad(torch.autograd.Function):
    """Maps attention outputs (tokens in dimension 2) back to the row; padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = x.shape
        return x.index_select(2, packed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        return gradients[0].new_zeros(ctx.shape).index_copy_(2, packed, gradients[0]), None


class _BlockedSuffixes(torch.autograd.Function):
    """softmax over the keys of the prefix and of the suffix itself, in blocks that fit the processor's caches.

    Heads and groups share one dimension, H = kv_heads * G.

    Args:
        q: [H, K, queries per key * S, head].
        k, v: [H, K, S, head].
        prefix_k, prefix_v: [H, P, head].
        mask: [G, S, P + S] additive. The keys of a prefix are multiplied with all of its suffixes in one product and
            never copied.
        sees_all: whether the suffixes see their whole prefixes.
        keeps: whether probabilities are saved for the backward pass; otherwise they are recomputed there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        prefix_k: Tensor,
        prefix_v: Tensor,
        mask: Tensor,
        sees_all: bool,
        scale: float,
        keeps: bool,
    ) -> Tensor:
        out, saved, kept = torch.empty_like(q), [], []
        for heads, part in _blocks(q, mask.shape[2]):
            scaled = q[heads, part] * scale
            at_prefix, at_own = _probabilities(scaled, k[heads, part], prefix_k[heads], _of(mask, heads), sees_all)
            # [heads * K, queries, head] of the own keys, then the prefix's part is added in place.
            found = torch.bmm(at_own, v[heads, part].flatten(0, 1))
            found.view(len(at_prefix), -1, q.shape[3]).baddbmm_(at_prefix, prefix_v[heads])
            out[heads, part] = found.view(scaled.shape)
            saved.append(scaled)
            if keeps:
                kept += [at_prefix, at_own]
        ctx.save_for_backward(k, v, prefix_k, prefix_v, mask, *saved, *kept)
        ctx.sees_all, ctx.scale, ctx.keeps = sees_all, scale, keeps
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        k, v, prefix_k, prefix_v, mask, *saved = ctx.saved_tensors
        grad_out = gradients[0].contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(grad_out), torch.empty_like(k), torch.empty_like(v)
        # [2, H, P, head]: gradients of the prefix's keys and values add up over all suffixes, so in fp32
        sums = prefix_k.new_zeros((2, *prefix_k.shape), dtype=torch.promote_types(k.dtype, torch.float32))
        blocks = list(_blocks(grad_out, mask.shape[2]))
        for index, (heads, part) in enumerate(blocks):
            scaled, own_k, own_v = saved[index], k[heads, part], v[heads, part]
            if ctx.keeps:
                at_prefix, at_own = saved[len(blocks) + 2 * index : len(blocks) + 2 * index + 2]
            else:
                at_prefix, at_own = _probabilities(scaled, own_k, prefix_k[heads], _of(mask, heads), ctx.sees_all)
            grad = grad_out[heads, part]
            # One gradient in two shapes: [heads, K * queries, head] and [heads * K, queries, head].
            together, apart = grad.reshape(len(at_prefix), -1, k.shape[3]), grad.reshape(len(at_own), -1, k.shape[3])
            grad_v[heads, part] = torch.bmm(at_own.transpose(1, 2), apart).view(own_v.shape)
            sums[1][heads].add_(torch.bmm(at_prefix.transpose(1, 2), together))
            to_prefix = torch.bmm(together, prefix_v[heads].transpose(1, 2))
            to_own = torch.bmm(apart, own_v.flatten(0, 1).transpose(1, 2))
            _back_through_softmax(to_prefix, to_own, at_prefix, at_own)
            found = torch.bmm(to_own, own_k.flatten(0, 1))
            found.view(together.shape).baddbmm_(to_prefix, prefix_k[heads])
            grad_q[heads, part] = found.mul_(ctx.scale).view(scaled.shape)
            grad_k[heads, part] = torch.bmm(to_own.transpose(1, 2), scaled.view(apart.shape)).view(own_k.shape)
            sums[0][heads].add_(torch.bmm(to_prefix.transpose(1, 2), scaled.view(together.shape)))
        return grad_q, grad_k, grad_v, *sums.to(k.dtype), None, None, None, None


def _blocks(q: Tensor, num_keys: int) -> Iterator[tuple[slice, slice]]:
    """Heads and suffixes of each block.

    Args:
        q: [H, K, queries a key * S, head].
        num_keys: keys that each query is multiplied with, P + S.
    """
    num_heads, num_suffixes, num_queries, _ = q.shape
    each = max(1, BLOCK_SCORES // (num_queries * num_keys))  # suffixes per block
    num_together = max(1, each // num_suffixes)
    for head in range(0, num_heads, num_together):
        for start in range(0, num_suffixes, each):
            yield slice(head, min(num_heads, head + num_together)), slice(start, start + each)


def _of(mask: Tensor, heads: slice) -> Tensor:
    """The mask [1 or heads, S, P + S] of a slice of H = kv_heads * G."""
    if len(mask) == 1:
        return mask
    return mask[torch.arange(heads.start, heads.stop, device=mask.device) % len(mask)]


def _probabilities(scaled: Tensor, k: Tensor, prefix_k: Tensor, mask: Tensor, sees_all: bool) -> tuple[Tensor, Tensor]:
    """Probabilities of a block: over the prefixes [H, K * queries, P] and over the suffixes [H * K, queries, S].

    They are separate tensors because torch copies a slice for each product that reads it, which took a third of the
    time of this attention (docs/log.md).
    """
    num_heads, num_suffixes, num_queries, size = scaled.shape
    num_own, cut = k.shape[2], prefix_k.shape[1]
    # One tensor for both parts, so that the softmax runs over prefix and own keys together.
    scores = scaled.new_empty(num_heads, num_suffixes * num_queries, cut + num_own)
    by_suffix = scores.view(num_heads * num_suffixes, num_queries, cut + num_own)
    torch.bmm(scaled.view(num_heads, -1, size), prefix_k.transpose(1, 2), out=scores[..., :cut])
    torch.bmm(scaled.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), out=by_suffix[..., cut:])
    hidden = cut if sees_all else 0
    scores.view(num_heads, -1, num_own, cut + num_own)[..., hidden:].add_(mask[:, None, :, hidden:])
    probabilities = torch.softmax(scores, -1)
    at_own = probabilities.view(by_suffix.shape)[..., cut:].contiguous()
    return probabilities[..., :cut].contiguous(), at_own


def _back_through_softmax(to_prefix: Tensor, to_own: Tensor, at_prefix: Tensor, at_own: Tensor) -> None:
    """Turn gradients of probabilities into those of scores, in place: p * (g - sum(p * g)), the sum over both parts."""
    # The sum over all keys is taken in fp32 and rounded once.
    wide = torch.promote_types(to_own.dtype, torch.float32)
    mean = (to_prefix * at_prefix).sum(-1, keepdim=True, dtype=wide)
    mean.add_((to_own * at_own).sum(-1, keepdim=True, dtype=wide).view(mean.shape))
    narrow = mean.to(to_own.dtype)
    to_prefix.sub_(narrow).mul_(at_prefix)
    to_own.sub_(narrow.view(*to_own.shape[:2], 1)).mul_(at_own)


@lru_cache(maxsize=16)
def suffix_mask(layout: PrefixLayout, window: int | None, dtype: torch.dtype, device: str) -> Tensor:
    """[G, S, P + S] additive mask: 0 where a suffix token may attend, else -inf.

    Args:
        layout: G groups with prefixes of up to P and suffixes of up to S tokens.
        window: tokens that a token sees, itself included; None for all before it.
        dtype: of the scores that it is added to.
        device: of the mask.
    """
    before = torch.tensor(layout.prefix_tokens, device=device)[:, None]
    ahead, own = (torch.arange(n, device=device) for n in (layout.longest_prefix, layout.longest_suffix))
    keys = torch.cat((ahead.expand(len(before), -1), before + own), 1)[:, None]  # positions, [G, 1, P + S]
    queries = (before + own)[..., None]  # positions, [G, S, 1]
    allowed = keys <= queries
    allowed[:, :, : len(ahead)] &= (ahead < before)[:, None]  # hides the padding of shorter prefixes
    if window is not None:
        allowed &= keys > queries - window
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


Causal = Callable[[Tensor, Tensor, Tensor], Tensor]


def shared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PrefixLayout,
    causal: Causal,
    scale: float,
    window: int | None,
    *,
    is_blocked: bool,
    keeps: bool,
) -> Tensor:
    """Attention of a micro-batch packed into one row.

    Args:
        query: [1, heads, T, head].
        key: [1, kv_heads, T, head].
        value: [1, kv_heads, T, head].
        layout: how the row is made up of prefixes and suffixes.
        causal: attention for plain rows, applied to the prefixes.
        scale: factor of the scores.
        window: attention window in tokens, including the token itself.
        is_blocked: whether to use blockwise matrix products (CPU) instead of SDPA.
        keeps: whether blockwise products save their probabilities for the backward pass; otherwise they are computed
            again.

    Returns:
        [1, heads, T, head].
    """
    padded, packed = _indices(layout, str(query.device))
    cut = layout.num_groups * layout.longest_prefix
    laid = [_Pad.apply(x, padded, packed)[0] for x in (query, key, value)]  # [heads, G * P + G * K * S, head]
    if not cut:  # no shared prefix: the suffixes are plain rows, [G * K, heads, S, head]
        rows = [x.unflatten(1, (len(layout.suffix_tokens), -1)).transpose(0, 1) for x in laid]
        alone: Tensor = _Unpad.apply(causal(*rows).transpose(0, 1).flatten(1, 2)[None], packed)
        return alone
    # prefixes as plain rows: [G, heads, P, head]
    first = [x[:, :cut].unflatten(1, (layout.num_groups, -1)).transpose(0, 1) for x in laid]
    # [heads, G, K, S, head]
    suffixes = [x[:, cut:].unflatten(1, (layout.num_groups, layout.num_suffixes, -1)) for x in laid]
    mask = suffix_mask(layout, window, query.dtype, str(query.device))
    if is_blocked:
        sees_all = window is None and len(set(layout.prefix_tokens)) == 1
        seen = _blocked_suffixes(suffixes, first[1:], mask, sees_all, scale, keeps)
    else:
        seen = _fused_suffixes(suffixes, first[1:], mask, scale)
    together = torch.cat((causal(*first).transpose(0, 1).flatten(1, 2), seen), 1)
    out: Tensor = _Unpad.apply(together[None], packed)
    return out


def _blocked_suffixes(
    suffixes: Sequence[Tensor], first: Sequence[Tensor], mask: Tensor, sees_all: bool, scale: float, keeps: bool
) -> Tensor:
    """suffixes: query [heads, G, K, S, head], key and value of kv_heads; first: key and value of the prefixes.

    Returns [heads, G * K * S, head].
    """
    q, k, v = suffixes
    num_heads, num_kv_heads = q.shape[0], k.shape[0]
    # the query heads that share a key head are stacked along the rows: [kv_heads * G, K, queries a key * S, head]
    # Stacking avoids a copy of each key head for every query head that uses it (grouped-query attention).
    stacked = q.unflatten(0, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4, 5).flatten(3, 4).flatten(0, 1)
    # [G, kv_heads, P, head] -> [kv_heads * G, P, head]
    at_first = [x.transpose(0, 1).flatten(0, 1).contiguous() for x in first]
    own = [x.flatten(0, 1).contiguous() for x in (k, v)]  # [kv_heads * G, K, S, head]
    out: Tensor = _BlockedSuffixes.apply(stacked.contiguous(), *own, *at_first, mask, sees_all, scale, keeps)
    apart = out.view(num_kv_heads, k.shape[1], k.shape[2], -1, k.shape[3], k.shape[4])
    return apart.permute(0, 3, 1, 2, 4, 5).reshape(num_heads, -1, k.shape[4])


def _fused_suffixes(suffixes: Sequence[Tensor], first: Sequence[Tensor], mask: Tensor, scale: float) -> Tensor:
    """The same with torch's attention, each suffix preceded by a copy of its prefix's keys."""
    num_suffixes = suffixes[0].shape[2]
    q, k, v = (x.permute(1, 2, 0, 3, 4) for x in suffixes)  # [G, K, heads, S, head]
    ahead = [x[:, None].expand(-1, num_suffixes, -1, -1, -1) for x in first]  # [G, K, kv_heads, P, head], no copy yet
    k, v = (torch.cat(pair, 3) for pair in zip(ahead, (k, v), strict=True))  # [G, K, kv_heads, P + S, head]
    masks = mask.repeat_interleave(num_suffixes, 0)[:, None]  # [G * K, 1, S, P + S]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=masks, scale=scale, enable_gqa=True)
    return found.transpose(0, 1).flatten(1, 2)
