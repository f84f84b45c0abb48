"""FlexAttention over rows end to end is attention over separate rows, in float32 and in bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.ml.training.conftest import VOCABULARY, random_examples
from tests.ml.training.test_packing import loss_and_gradients, shaken
from tests.ml.training.test_prefix_attention import family
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig

from luthier.core.plan import Plan
from luthier.ml.training.attention import causal_attention, packed_row
from luthier.ml.training.equivalence import why_not_packed
from luthier.ml.training.methods.protocol import load_method
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.prefix_attention import PrefixLayout


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("prefix_tokens", [(0,), (70,), (30, 200)])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (8, 2), (28, 4)])
def test_equals_attention_in_two_parts(
    device: str, window: int | None, prefix_tokens: tuple[int, ...], num_heads: int, num_kv_heads: int
) -> None:
    """Also with seven query heads to a key head, as Qwen2 has them, and with no more tokens than a block."""
    place = torch.device(device)
    for lengths in ((90, 20, 530, 41), (30, 20, 10, 8)):
        layout = PrefixLayout(prefix_tokens, lengths)
        torch.manual_seed(0)
        num_tokens = sum(prefix_tokens) + sum(lengths)
        shapes = [(1, heads, num_tokens, 64) for heads in (num_heads, num_kv_heads, num_kv_heads)]
        q, k, v = (torch.randn(shape, device=place, requires_grad=True) for shape in shapes)
        both = []
        for row in (layout, packed_row(layout, place) if device != "cpu" else layout):
            out, _ = causal_attention(nn.Identity(), q, k, v, None, sliding_window=window, prefix_layout=row)
            torch.manual_seed(1)
            both.append((out.detach(), *torch.autograd.grad((out * torch.randn_like(out)).sum(), [q, k, v])))
        for one, other in zip(*both, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("num_shared", [0, 17])
@pytest.mark.parametrize("flex", [True, False])
def test_a_model_computes_the_same(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    device: str,
    method: str,
    num_shared: int,
    flex: bool,
) -> None:
    """Rows end to end or behind a shared beginning, by FlexAttention and in two parts, against each row by itself."""
    model = shaken(make_model(make_plan(method, device=device)))
    rows = family(6, num_shared=17) if num_shared else random_examples(9, seed=3, longest=60)
    loss, gradients = loss_and_gradients(model, [[row] for row in rows])
    assert not flex or why_not_packed(model) is None
    found_loss, found = loss_and_gradients(model, [rows], (num_shared,))
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert float((found - gradients).norm() / gradients.norm()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 16])
def test_models_prove_that_they_may_be_packed(
    make_plan: Callable[..., Plan], device: str, dtype: torch.dtype, window: int | None
) -> None:
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=window,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).to(device, dtype)
    model = TrainableModel(base, load_method(make_plan("lora").method), 0, device)
    assert why_not_packed(model) is None
    assert model.uses_flex_attention is (device != "cpu")
