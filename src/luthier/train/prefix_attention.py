"""Causal attention for a micro-batch whose examples begin alike: the beginning is computed once.

The micro-batch lies in one row: P tokens of the common beginning, then B suffixes of S tokens, padded on the right.

    tokens     p0 p1 ... pP-1 | a0 a1 ... aS-1 | b0 b1 ... bS-1 | ...
    positions  0  1  ... P-1  | P  P+1 ...     | P  P+1 ...     | ...

A suffix sees all of the beginning and itself, and no other suffix; a causal model computes the beginning without seeing
what follows, so outputs and gradients are those of B separate rows (the sum over rows of what they give the beginning
is what one shared beginning receives). The idea is that of cascade inference and of prefix sharing in preference
training (Wang & Hegde, 2024, "Accelerating Direct Preference Optimization with Prefix Sharing", arXiv:2410.20305,
section 3); the two-part attention below needs no mask over the whole row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefixLayout:
    """Sizes of a shared micro-batch: tokens of the beginning, number of suffixes, tokens of each (padding included)."""

    prefix_tokens: int
    num_suffixes: int
    suffix_tokens: int

    def positions(self, device: torch.device) -> Tensor:
        """[1, P + B * S] positions, those of each suffix counted on from the beginning."""
        own = torch.arange(self.prefix_tokens, self.prefix_tokens + self.suffix_tokens, device=device)
        return torch.cat((torch.arange(self.prefix_tokens, device=device), own.repeat(self.num_suffixes)))[None]


class _UnfusedSuffixes(torch.autograd.Function):
    """softmax over the beginning's and the suffix's own keys; the probabilities are kept for the way back.

    q: [kv_heads, B, groups * S, head]; k, v: [kv_heads, B, S, head]; prefix_k, prefix_v: [kv_heads, P, head]; mask:
    [S, P + S] additive. The beginning's keys meet all suffixes in one product and are never copied.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        num_kv_heads, size = q.shape[0], q.shape[3]
        num_own, num_prefix = k.shape[2], prefix_k.shape[1]
        together = q.reshape(num_kv_heads, -1, size)
        scores = q.new_empty(*q.shape[:3], num_prefix + num_own)
        scores[..., :num_prefix] = torch.bmm(together, prefix_k.transpose(1, 2)).view(*q.shape[:3], num_prefix)
        scores[..., num_prefix:] = torch.matmul(q, k.transpose(-1, -2))
        scores.unflatten(2, (-1, num_own)).mul_(scale).add_(mask)
        probabilities = torch.softmax(scores, -1)
        out = torch.matmul(probabilities[..., num_prefix:], v)
        at_prefix = probabilities[..., :num_prefix].reshape(num_kv_heads, -1, num_prefix)
        out.view(num_kv_heads, -1, size).baddbmm_(at_prefix, prefix_v)
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, probabilities)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, prefix_k, prefix_v, probabilities = ctx.saved_tensors
        grad_out = gradients[0].contiguous()
        num_kv_heads, size, num_prefix = q.shape[0], q.shape[3], prefix_k.shape[1]
        together, grad_together = q.reshape(num_kv_heads, -1, size), grad_out.view(num_kv_heads, -1, size)
        at_prefix = probabilities[..., :num_prefix].reshape(num_kv_heads, -1, num_prefix)
        at_own = probabilities[..., num_prefix:]
        grad_v = torch.matmul(at_own.transpose(-1, -2), grad_out)
        grad_prefix_v = torch.bmm(at_prefix.transpose(1, 2), grad_together)
        grad_p = torch.empty_like(probabilities)
        to_prefix = torch.bmm(grad_together, prefix_v.transpose(1, 2))
        grad_p[..., :num_prefix] = to_prefix.view(*q.shape[:3], num_prefix)
        grad_p[..., num_prefix:] = torch.matmul(grad_out, v.transpose(-1, -2))
        grad_s = torch._softmax_backward_data(grad_p, probabilities, -1, probabilities.dtype).mul_(ctx.scale)
        own, prefix = grad_s[..., num_prefix:], grad_s[..., :num_prefix].reshape(num_kv_heads, -1, num_prefix)
        grad_q = torch.matmul(own, k)
        grad_q.view(num_kv_heads, -1, size).baddbmm_(prefix, prefix_k)
        grad_k = torch.matmul(own.transpose(-1, -2), q)
        return grad_q, grad_k, grad_v, torch.bmm(prefix.transpose(1, 2), together), grad_prefix_v, None, None


@lru_cache(maxsize=16)
def suffix_mask(layout: PrefixLayout, window: int | None, dtype: torch.dtype, device: str) -> Tensor:
    """[S, P + S] additive mask: 0 where a suffix token may look, -inf elsewhere; `window` counts the token itself."""
    keys = torch.arange(layout.prefix_tokens + layout.suffix_tokens, device=device)
    queries = keys[layout.prefix_tokens :, None]
    allowed = keys <= queries
    if window is not None:
        allowed &= keys > queries - window
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


def suffix_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout, scale: float, window: int | None, *, unfused: bool
) -> Tensor:
    """What the suffixes see. query: [1, heads, P + B * S, head]; key, value: [1, kv_heads, P + B * S, head].

    Returns [1, heads, B * S, head]. unfused: form all probabilities by matrix products (CPU, short rows), not SDPA.
    """
    num_kv_heads, cut = key.shape[1], layout.prefix_tokens
    sizes = (layout.num_suffixes, layout.suffix_tokens)
    mask = suffix_mask(layout, window, query.dtype, str(query.device))
    prefix_k, prefix_v = key[0, :, :cut], value[0, :, :cut]
    k, v = key[0, :, cut:].unflatten(1, sizes), value[0, :, cut:].unflatten(1, sizes)
    q = query[0, :, cut:].unflatten(1, sizes).unflatten(0, (num_kv_heads, -1))  # [kv_heads, groups, B, S, head]
    if unfused:
        stacked = q.transpose(1, 2).flatten(2, 3).contiguous()
        out: Tensor = _UnfusedSuffixes.apply(
            stacked, k.contiguous(), v.contiguous(), prefix_k.contiguous(), prefix_v.contiguous(), mask, scale
        )
        apart = out.view(num_kv_heads, layout.num_suffixes, -1, layout.suffix_tokens, query.shape[-1])
        return apart.transpose(1, 2).reshape(1, query.shape[1], -1, query.shape[-1])
    rows = q.flatten(0, 1).transpose(0, 1)  # [B, heads, S, head]
    keys = torch.cat((prefix_k[None].expand(sizes[0], -1, -1, -1), k.transpose(0, 1)), 2)
    values = torch.cat((prefix_v[None].expand(sizes[0], -1, -1, -1), v.transpose(0, 1)), 2)
    found = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
    return found.transpose(0, 1).flatten(1, 2)[None]
