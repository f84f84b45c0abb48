"""Packed matrices: how far they are off, the same gradients as the unpacked matrix, nothing unpacked that is kept."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.vacuous import nonempty
from tests.zoo.families import FAMILIES, family_config
from torch import nn

from luthier.ml.inference.models.architecture import empty_model
from luthier.ml.inference.models.forward import text_inputs
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.quantised import (
    Bf16Linear,
    Int8Linear,
    Nf4Linear,
    PackedLinear,
    num_parameters,
    packable_layers,
    quantise,
)
from luthier.ml.inference.models.structure import structure_of

KINDS = [
    Bf16Linear,
    Int8Linear,
    pytest.param(Nf4Linear, marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="no bitsandbytes")),
]


def plain(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 64, bias=bias, dtype=dtype).requires_grad_(False)


def test_int8_is_within_half_a_step_of_each_weight() -> None:
    layer = plain()
    layer.weight[3] = 0.0
    packed = Int8Linear(layer)
    unpacked = packed.unpacked(torch.float32)
    step = packed.scale.float()
    # The scale is rounded to bfloat16: the largest weight of a row may lie up to 2^-9 * 127 steps beyond 127.
    beyond = (layer.weight.abs().amax(1, keepdim=True) - 127 * step).clamp_min(0)
    assert ((unpacked - layer.weight).abs() <= step / 2 + beyond + 1e-8).all()
    assert not unpacked[3].any()
    assert packed.weight.dtype == torch.int8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_the_unpacked_matrix(kind: type[PackedLinear], dtype: torch.dtype) -> None:
    packed = kind(plain(dtype))
    same = plain(dtype)
    same.weight.copy_(packed.unpacked(dtype))
    x = torch.randn(3, 5, 128, dtype=dtype)
    outs = []
    for layer in (packed, same):
        given = x.clone().requires_grad_()
        out = layer(given)
        out.square().sum().backward()
        outs.append((out.detach(), given.grad))
    assert torch.equal(outs[0][0], outs[1][0])
    torch.testing.assert_close(outs[0][1], outs[1][1])


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_before_training_spoils_no_gradient(kind: type[PackedLinear]) -> None:
    # bitsandbytes' own layer repacks its weights at its first call in evaluation, and then has wrong gradients
    packed = kind(plain(torch.bfloat16))
    x = torch.randn(4, 128, dtype=torch.bfloat16)

    def gradient() -> torch.Tensor:
        given = x.clone().requires_grad_()
        packed(given).sum().backward()
        assert given.grad is not None
        return given.grad

    before = gradient()
    packed.eval()
    with torch.no_grad():
        packed(x)
    packed.train()
    assert torch.equal(gradient(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_unpacked_is_persistent_for_the_way_back(kind: type[PackedLinear]) -> None:
    packed, kept = kind(plain(bias=False)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda _: None):
        packed(torch.randn(2, 128, requires_grad=True))
    assert torch.Size([64, 128]) not in kept


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="no bitsandbytes")
def test_nf4_has_sixteen_values_a_block_and_half_a_byte_a_weight() -> None:
    packed = Nf4Linear(plain())
    assert packed.weight.numel() == 64 * 128 // 2
    blocks = packed.unpacked(torch.float32).reshape(-1, 64)
    assert all(nonempty(len(block.unique()) <= 16 for block in blocks))
    # NF4's coarsest step is 0.304 of the largest weight of a block (Dettmers et al., appendix E): half of it at most
    largest = plain().weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    assert ((blocks - plain().weight.reshape(-1, 64)).abs() <= 0.17 * largest).all()


def test_every_matrix_but_the_head_is_packed_and_all_are_counted(tiny_model: Path) -> None:
    whole = load_model(tiny_model, dtype="bfloat16", attention="sdpa")
    packed = load_model(tiny_model, dtype="bfloat16", attention="sdpa", quantisation="int8")
    assert sum(isinstance(m, PackedLinear) for m in packed.modules()) == 2 * 7
    assert num_parameters(packed) == num_parameters(whole) == whole.num_parameters()
    assert not isinstance(packed.get_output_embeddings(), PackedLinear)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        one, other = whole(ids).logits.float(), packed(ids).logits.float()
    assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.999
    assert not torch.equal(one, other)
    assert quantise(load_model(tiny_model, dtype="float32", attention="sdpa"), "int8") == 14


@pytest.mark.parametrize(
    ("kind", "wide"),
    [
        ("mamba", {"x_proj", "dt_proj", "out_proj"}),  # a kernel is given their matrices
        ("jamba", {"dt_proj"}),
        ("rwkv", {"output", "value"}),  # divided in evaluation; a `value` that is called is packed
        ("gemma3n_text", {"correction_coefs", "prediction_coefs"}),  # clamped
        ("phimoe", {"router"}),  # a linear layer that also chooses
        ("falcon", set()),  # a class of its own that computes the same
    ],
)
def test_what_is_not_only_called_stays_wide_and_the_plan_counts_it_so(kind: str, wide: set[str]) -> None:
    torch.manual_seed(0)
    config = family_config(FAMILIES[kind], vocabulary=96, tokens={"bos_token_id": 0, "pad_token_id": 0})
    model = empty_model(config, device="cpu", dtype=torch.float32).eval()
    expected = packable_layers(model)
    packed_weights = sum(layer.weight.numel() for layer in expected.values())
    num = quantise(model, "int8")
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    left = {name for name, m in linear.items() if not isinstance(m, PackedLinear)}
    own = {name.rpartition(".")[2] for name in left if linear[name] is not model.get_output_embeddings()}
    assert own == wide
    assert num == len(expected) == len(linear) - len(left) > 0
    assert structure_of(config.to_dict()).num_packed_parameters == packed_weights
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert model(input_ids=ids, **text_inputs(model, ids)).logits.isfinite().all()


def test_a_read_that_only_a_pass_shows_leaves_the_matrix_wide(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_model, dtype="float32", attention="sdpa")
    kind = type(model.model.layers[0].mlp)
    plain = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, x: plain(self, x) + 0 * getattr(self, "down" + "_proj").weight.sum()
    )
    assert quantise(model, "int8") == 2 * 6
    assert not isinstance(model.model.layers[1].mlp.down_proj, PackedLinear)


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(1, 25)[None]
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, **text_inputs(model, ids)).logits
    return found


@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "gemma3_text", "gemma3n_text", "qwen3", "phi3", "granite", "mamba", "falcon"]
)
def test_a_base_of_16_bits_computes_in_float32_as_if_it_had_been_read_so(name: str, tmp_path: Path) -> None:
    """Also what is in no file, such as scales of embeddings and angles of positions, which bfloat16 would round."""
    torch.manual_seed(0)
    config = family_config(FAMILIES[name], vocabulary=96, tokens={"bos_token_id": 0, "pad_token_id": 0})
    made = empty_model(config, device="cpu", dtype=torch.float32)
    made.to(torch.bfloat16).save_pretrained(tmp_path)
    whole = load_model(tmp_path, dtype="float32", attention="sdpa")
    packed = load_model(tmp_path, dtype="float32", attention="sdpa", quantisation="bfloat16")
    layers = [layer for layer in packed.modules() if isinstance(layer, PackedLinear)]
    assert layers
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    own = {id(layer.weight) for layer in layers}
    assert {one.dtype for one in packed.parameters() if id(one) not in own} == {torch.float32}
    assert packed.dtype == torch.float32
    buffers = dict(whole.named_buffers())
    assert [place for place, one in packed.named_buffers() if not torch.equal(one, buffers[place])] == []
    torch.testing.assert_close(logits(packed), logits(whole), atol=1e-6, rtol=1e-5)
