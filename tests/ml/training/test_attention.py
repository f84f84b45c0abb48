"""Attention in blocks is the same function as torch's own, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from luthier.ml.training.attention import causal_attention


def draw(num_heads: int = 6, num_kv_heads: int = 2, num_tokens: int = 9) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(2, num_heads, num_tokens, 4), (2, num_kv_heads, num_tokens, 4), (2, num_kv_heads, num_tokens, 4)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize(("block_tokens", "block_scores"), [(128, 1 << 20), (4, 1 << 20), (4, 1), (1, 100)])
def test_equals_sdpa_in_output_and_gradients(
    window: int | None, keeps: bool, block_tokens: int, block_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.ml.training.attention.BLOCK_TOKENS", block_tokens)
    monkeypatch.setattr("luthier.ml.training.attention.BLOCK_SCORES", block_scores)
    monkeypatch.setattr("luthier.ml.training.attention.KEPT_MAX_TOKENS", 512 if keeps else 0)
    q, k, v = draw()
    num_tokens = q.shape[2]
    allowed = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    if window is not None:
        allowed = allowed.triu(1 - window)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True).transpose(1, 2)
    out, _ = causal_attention(nn.Identity(), q, k, v, None, sliding_window=window)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    ours = torch.autograd.grad((out * weight).sum(), [q, k, v])
    theirs = torch.autograd.grad((expected * weight).sum(), [q, k, v])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradient_is_the_derivative() -> None:
    q, k, v = draw(num_heads=2, num_kv_heads=1, num_tokens=4)
    assert torch.autograd.gradcheck(lambda *t: causal_attention(nn.Identity(), *t, None)[0], (q, k, v))


def test_long_rows_keep_less_for_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    q, k, v = draw(num_tokens=40)
    found = []
    for most in (40, 39):
        monkeypatch.setattr("luthier.ml.training.attention.KEPT_MAX_TOKENS", most)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out, _ = causal_attention(nn.Identity(), q, k, v, None)
        found.append((sum(kept), out, torch.autograd.grad(out.square().sum(), [q, k, v])))
    (most_kept, one, grads), (least_kept, other, others) = found
    assert most_kept - least_kept == 2 * 6 * 40 * 40
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(grads, others)


@pytest.mark.parametrize("asked", [{"softcap": 30.0}, {"s_aux": torch.zeros(6)}, {"dropout": 0.1}])
def test_refuses_what_it_does_not_compute(asked: dict[str, object]) -> None:
    q, k, v = draw()
    with pytest.raises(ValueError, match="computes none of these"):
        causal_attention(nn.Identity(), q, k, v, None, **asked)


@pytest.mark.parametrize("window", [None, 3])
def test_torchs_own_kernel_gives_the_same(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw()
    blocked, _ = causal_attention(nn.Identity(), q, k, v, None, sliding_window=window)
    monkeypatch.setattr("luthier.ml.training.attention.is_blocked", lambda device: False)
    own, _ = causal_attention(nn.Identity(), q, k, v, None, sliding_window=window)
    torch.testing.assert_close(blocked, own)
