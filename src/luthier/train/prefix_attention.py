"""Causal attention for a micro-batch whose rows begin alike, in groups: each beginning is computed once.

The micro-batch lies in one row without any padding: the beginnings of G groups, then the suffixes of each group, K of
each. Examples with one system prompt are one group of many; the two completions of each preference pair, and the
samples of each prompt, are a group of their own.

    tokens     p0 p1 p2 q0 q1 | a0 a1 | b0 b1 b2 | c0 | d0 d1        p with suffixes a, b; q with suffixes c, d
    positions  0  1  2  0  1  | 3  4  | 3  4  5  | 2  | 2  3

A suffix sees all of its group's beginning and itself, and nothing else; a causal model computes the beginning without
seeing what follows, so outputs and gradients are those of separate rows (the sum over rows of what they give the
beginning is what one shared beginning receives). The idea is that of cascade inference and of prefix sharing in
preference training (Wang & Hegde, 2024, "Accelerating Direct Preference Optimization with Prefix Sharing",
arXiv:2410.20305, section 3); the two-part attention below needs no mask over the whole row. Only attention pads: the
matrices of the layers, where nearly all of the work is, see no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefixLayout:
    """Sizes of a shared micro-batch.

    prefix_tokens: of the beginning of each group, [G]. suffix_tokens: of each suffix, group after group, [G * K].
    """

    prefix_tokens: tuple[int, ...]
    suffix_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        num_groups, num = len(self.prefix_tokens), len(self.suffix_tokens)
        if not num or num % num_groups or min(self.suffix_tokens) < 1 or min(self.prefix_tokens) < 0:
            raise ValueError(
                f"{num_groups} beginnings of {self.prefix_tokens} tokens with {num} suffixes of {self.suffix_tokens}: "
                "each beginning needs equally many suffixes, of one token or more"
            )

    @property
    def num_groups(self) -> int:
        """G, the number of beginnings."""
        return len(self.prefix_tokens)

    @property
    def num_suffixes(self) -> int:
        """K, the suffixes of each beginning."""
        return len(self.suffix_tokens) // len(self.prefix_tokens)

    @property
    def longest_prefix(self) -> int:
        """P, to which attention pads the beginnings."""
        return max(self.prefix_tokens)

    @property
    def longest_suffix(self) -> int:
        """S, to which attention pads the suffixes."""
        return max(self.suffix_tokens)

    def starts(self) -> tuple[list[int], list[int]]:
        """Where each beginning and each suffix starts in the row."""
        ends = [0, *accumulate((*self.prefix_tokens, *self.suffix_tokens))]
        return ends[: self.num_groups], ends[self.num_groups : -1]

    def positions(self, device: torch.device) -> Tensor:
        """[1, tokens of the row] positions, those of each suffix counted on from its beginning."""
        pieces = [torch.arange(n) for n in self.prefix_tokens]
        for number, own in enumerate(self.suffix_tokens):
            before = self.prefix_tokens[number // self.num_suffixes]
            pieces.append(torch.arange(before, before + own))
        return torch.cat(pieces)[None].to(device)


@lru_cache(maxsize=16)
def _places(layout: PrefixLayout, device: str) -> tuple[Tensor, Tensor]:
    """How a row is padded for attention, and back.

    [G * P + G * K * S], for each padded place the token of the row that lies there, some token of the row in padding;
    [tokens of the row], for each token its padded place.
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
    """Lays the tokens (dimension 2) of a row out for attention. What padding holds is never read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padded: Tensor, packed: Tensor) -> Tensor:
        ctx.save_for_backward(packed)
        return x.index_select(2, padded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        return gradients[0].index_select(2, packed), None, None


class _Unpad(torch.autograd.Function):
    """Brings what attention gives (tokens in dimension 2) back into the row; padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = x.shape
        return x.index_select(2, packed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        return gradients[0].new_zeros(ctx.shape).index_copy_(2, packed, gradients[0]), None


class _UnfusedSuffixes(torch.autograd.Function):
    """softmax over the beginning's and the suffix's own keys; the probabilities are kept for the way back.

    Heads and groups of rows are one dimension, H = kv_heads * G. q: [H, K, queries a key * S, head]; k, v:
    [H, K, S, head]; prefix_k, prefix_v: [H, P, head]; mask: [G, S, P + S] additive. The keys of a beginning meet all of
    its suffixes in one product and are never copied.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        num_heads, size = q.shape[0], q.shape[3]
        num_own, num_prefix = k.shape[2], prefix_k.shape[1]
        together = q.reshape(num_heads, -1, size)
        scores = q.new_empty(*q.shape[:3], num_prefix + num_own)
        scores[..., :num_prefix] = torch.bmm(together, prefix_k.transpose(1, 2)).view(*q.shape[:3], num_prefix)
        scores[..., num_prefix:] = torch.matmul(q, k.transpose(-1, -2))
        by_group = scores.view(-1, mask.shape[0], q.shape[1], q.shape[2] // num_own, num_own, scores.shape[-1])
        by_group.mul_(scale).add_(mask[:, None, None])
        probabilities = torch.softmax(scores, -1)
        out = torch.matmul(probabilities[..., num_prefix:], v)
        at_prefix = probabilities[..., :num_prefix].reshape(num_heads, -1, num_prefix)
        out.view(num_heads, -1, size).baddbmm_(at_prefix, prefix_v)
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, probabilities)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, prefix_k, prefix_v, probabilities = ctx.saved_tensors
        grad_out = gradients[0].contiguous()
        num_heads, size, num_prefix = q.shape[0], q.shape[3], prefix_k.shape[1]
        together, grad_together = q.reshape(num_heads, -1, size), grad_out.view(num_heads, -1, size)
        at_prefix = probabilities[..., :num_prefix].reshape(num_heads, -1, num_prefix)
        at_own = probabilities[..., num_prefix:]
        grad_v = torch.matmul(at_own.transpose(-1, -2), grad_out)
        grad_prefix_v = torch.bmm(at_prefix.transpose(1, 2), grad_together)
        grad_p = torch.empty_like(probabilities)
        to_prefix = torch.bmm(grad_together, prefix_v.transpose(1, 2))
        grad_p[..., :num_prefix] = to_prefix.view(*q.shape[:3], num_prefix)
        grad_p[..., num_prefix:] = torch.matmul(grad_out, v.transpose(-1, -2))
        grad_s = torch._softmax_backward_data(grad_p, probabilities, -1, probabilities.dtype).mul_(ctx.scale)
        own, prefix = grad_s[..., num_prefix:], grad_s[..., :num_prefix].reshape(num_heads, -1, num_prefix)
        grad_q = torch.matmul(own, k)
        grad_q.view(num_heads, -1, size).baddbmm_(prefix, prefix_k)
        grad_k = torch.matmul(own.transpose(-1, -2), q)
        return grad_q, grad_k, grad_v, torch.bmm(prefix.transpose(1, 2), together), grad_prefix_v, None, None


@lru_cache(maxsize=16)
def suffix_mask(layout: PrefixLayout, window: int | None, dtype: torch.dtype, device: str) -> Tensor:
    """[G, S, P + S] additive mask: 0 where a suffix token may look, else -inf; `window` counts the token itself."""
    before = torch.tensor(layout.prefix_tokens, device=device)[:, None]
    ahead, own = (torch.arange(n, device=device) for n in (layout.longest_prefix, layout.longest_suffix))
    keys = torch.cat((ahead.expand(len(before), -1), before + own), 1)[:, None]  # positions, [G, 1, P + S]
    queries = (before + own)[..., None]
    allowed = keys <= queries
    allowed[:, :, : len(ahead)] &= (ahead < before)[:, None]
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
    unfused: bool,
) -> Tensor:
    """Attention of a micro-batch in one row. query: [1, heads, T, head]; key, value: [1, kv_heads, T, head].

    causal: attention of plain rows, for the beginnings. window: how far back a token looks, itself counted. unfused:
    form all probabilities by matrix products (CPU, short rows), not SDPA. Returns [1, heads, T, head].
    """
    padded, packed = _places(layout, str(query.device))
    cut = layout.num_groups * layout.longest_prefix
    laid = [_Pad.apply(x, padded, packed)[0] for x in (query, key, value)]
    if not cut:  # nothing in common: the suffixes are plain rows, [G * K, heads, S, head]
        rows = [x.unflatten(1, (len(layout.suffix_tokens), -1)).transpose(0, 1) for x in laid]
        alone: Tensor = _Unpad.apply(causal(*rows).transpose(0, 1).flatten(1, 2)[None], packed)
        return alone
    # beginnings as plain rows: [G, heads, P, head]
    first = [x[:, :cut].unflatten(1, (layout.num_groups, -1)).transpose(0, 1) for x in laid]
    suffixes = [x[:, cut:].unflatten(1, (layout.num_groups, layout.num_suffixes, -1)) for x in laid]
    mask = suffix_mask(layout, window, query.dtype, str(query.device))
    seen = (_unfused_suffixes if unfused else _fused_suffixes)(suffixes, first[1:], mask, scale)
    together = torch.cat((causal(*first).transpose(0, 1).flatten(1, 2), seen), 1)
    out: Tensor = _Unpad.apply(together[None], packed)
    return out


def _unfused_suffixes(suffixes: Sequence[Tensor], first: Sequence[Tensor], mask: Tensor, scale: float) -> Tensor:
    """suffixes: query [heads, G, K, S, head], key and value of kv_heads; first: key and value of the beginnings.

    Returns [heads, G * K * S, head].
    """
    q, k, v = suffixes
    num_heads, num_kv_heads = q.shape[0], k.shape[0]
    # the query heads that share a key head are stacked along the rows: [kv_heads * G, K, queries a key * S, head]
    stacked = q.unflatten(0, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4, 5).flatten(3, 4).flatten(0, 1)
    at_first = [x.transpose(0, 1).flatten(0, 1).contiguous() for x in first]
    own = [x.flatten(0, 1).contiguous() for x in (k, v)]
    out: Tensor = _UnfusedSuffixes.apply(stacked.contiguous(), *own, *at_first, mask, scale)
    apart = out.view(num_kv_heads, k.shape[1], k.shape[2], -1, k.shape[3], k.shape[4])
    return apart.permute(0, 3, 1, 2, 4, 5).reshape(num_heads, -1, k.shape[4])


def _fused_suffixes(suffixes: Sequence[Tensor], first: Sequence[Tensor], mask: Tensor, scale: float) -> Tensor:
    """The same by torch's own attention, each suffix behind a copy of its beginning's keys."""
    num_suffixes = suffixes[0].shape[2]
    q, k, v = (x.permute(1, 2, 0, 3, 4) for x in suffixes)  # [G, K, heads, S, head]
    ahead = [x[:, None].expand(-1, num_suffixes, -1, -1, -1) for x in first]
    k, v = (torch.cat(pair, 3) for pair in zip(ahead, (k, v), strict=True))
    masks = mask.repeat_interleave(num_suffixes, 0)[:, None]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=masks, scale=scale, enable_gqa=True)
    return found.transpose(0, 1).flatten(1, 2)
