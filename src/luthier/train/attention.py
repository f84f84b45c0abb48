"""Causal attention for training, chosen by length: unfused matrix products for short rows, SDPA for long ones.

Rows are padded on the right only, so a causal model needs no padding mask: no real token ever attends to padding, and
what is computed at padding is never read. That lets every micro-batch take the plain causal path.

On CPU, torch's fused kernel spends a third of a training step at lengths below about 512 tokens where two batched
bf16 matrix products do the same in a fraction of it (docs/log.md has the figures). On other devices SDPA is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from luthier.train.packed_attention import PackedRow, packed_attention
from luthier.train.prefix_attention import PrefixLayout, shared_attention

NAME = "luthier_causal"
UNFUSED_MAX_TOKENS = 512


class _UnfusedCausal(torch.autograd.Function):
    """softmax(q k^T * scale + mask) v with the probabilities kept, and nothing else, for the way back.

    q: [batch, kv_heads, groups * T, head]; k, v: [batch, kv_heads, T, head]. The query heads that share a key head
    are stacked along the rows, so that grouped attention is one batched product and no key is copied.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        num_tokens = k.shape[2]
        scores = torch.matmul(q, k.transpose(-1, -2)).unflatten(2, (-1, num_tokens))
        scores.mul_(scale).add_(mask)
        probabilities = torch.softmax(scores, -1).flatten(2, 3)
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.scale = scale
        return torch.matmul(probabilities, v)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = gradients
        q, k, v, probabilities = ctx.saved_tensors
        grad_v = torch.matmul(probabilities.transpose(-1, -2), grad_out)
        grad_p = torch.matmul(grad_out, v.transpose(-1, -2))
        grad_s = torch._softmax_backward_data(grad_p, probabilities, -1, probabilities.dtype).mul_(ctx.scale)
        return torch.matmul(grad_s, k), torch.matmul(grad_s.transpose(-1, -2), q), grad_v, None, None


def _causal_mask(num_tokens: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[T, T] additive mask: 0 where a token may look, -inf elsewhere; `window` counts the token itself."""
    allowed = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
    if window is not None:
        allowed = allowed.triu(1 - window)
    return torch.zeros(num_tokens, num_tokens, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


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

    query: [batch, heads, T, head]; key, value: [batch, kv_heads, T, head]; returns [batch, T, heads, head].
    prefix_layout: how a micro-batch lies in one row and shares its beginnings (prefix_attention.py), or such a row with
    the masks by which FlexAttention computes it (packed_attention.py); None for plain rows.
    Kinds of attention that it does not compute (score capping, sinks) are refused, never approximated.
    """
    if softcap is not None or s_aux is not None or attention_mask is not None or dropout:
        raise ValueError(
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
    """The beginnings by themselves, then what the suffixes see: [1, heads, tokens of the row, head]."""
    length = layout.longest_prefix + layout.longest_suffix
    window = sliding_window if sliding_window is not None and length > sliding_window else None
    unfused = query.device.type == "cpu" and length <= UNFUSED_MAX_TOKENS
    causal = partial(_causal, scale=scale, sliding_window=sliding_window)
    return shared_attention(query, key, value, layout, causal, scale, window, unfused=unfused)


# Its sizes are other ones in every micro-batch, and each would be compiled anew.
_uncompiled: Callable[..., Tensor] = torch.compiler.disable(_in_two_parts)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float, sliding_window: int | None) -> Tensor:
    """Plain causal attention: [batch, heads, T, head] from query of that shape and key, value of kv_heads."""
    num_tokens, num_kv_heads = query.shape[2], key.shape[1]
    window = sliding_window if sliding_window is not None and num_tokens > sliding_window else None
    is_compiling = torch.compiler.is_compiling()
    if query.device.type == "cpu" and num_tokens <= UNFUSED_MAX_TOKENS and not is_compiling:
        causal = _kept_causal_mask(num_tokens, window, query.dtype, query.device)
        stacked = query.unflatten(1, (num_kv_heads, -1)).flatten(2, 3)
        out: Tensor = _UnfusedCausal.apply(stacked, key, value, causal, scale).view(query.shape)
        return out
    make = _causal_mask if is_compiling else _kept_causal_mask  # a compiler does not see what is kept
    mask = None if window is None else make(num_tokens, window, query.dtype, query.device)
    found: Tensor = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return found


def install() -> str:
    """Make the attention known to transformers under the returned name."""
    AttentionInterface.register(NAME, causal_attention)
    return NAME
