"""QLoRA: right gradients over a packed base, after an evaluation too, in the precision of the run."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import Plan
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.quantised import PackedLinear
from luthier.ml.training.methods.lora import Lora
from luthier.ml.training.model import TrainableModel, collate

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
NEEDS_LIBRARY = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="no bitsandbytes")


def gradients(model: TrainableModel, examples: list[TokenisedExample]) -> torch.Tensor:
    model.module.train()
    total, _ = model.loss_sum(collate(examples, model.pad_id, "cpu"))
    total.backward()
    found = [p.grad.flatten().float() for p in model.module.parameters() if p.grad is not None]
    model.module.zero_grad()
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["int8", pytest.param("nf4", marks=NEEDS_LIBRARY)])
@pytest.mark.parametrize("targets", [("q_proj",), ("q_proj", "gate_proj", "down_proj")])
def test_gradients_are_those_of_lora_on_the_unpacked_base(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], kind: str, targets: tuple[str, ...]
) -> None:
    plan = make_plan("qlora", settings={"quantisation": kind, "targets": targets}, precision="bfloat16")
    packed = make_model(plan)
    base = load_model(plan.base_model.path, dtype="bfloat16", attention="sdpa")
    for name, layer in packed.module.named_modules():
        if isinstance(layer, PackedLinear):
            plain = name.removeprefix("base_model.model.").removesuffix(".base_layer")
            base.get_submodule(plain).weight.data = layer.unpacked(torch.bfloat16)
    whole = TrainableModel(base, Lora(plan.method), plan.training.seed)
    with torch.no_grad():  # B is zero at the start, which would hide half of the mistakes
        mine = [p for p in packed.module.parameters() if p.requires_grad]
        theirs = [p for p in whole.module.parameters() if p.requires_grad]
        for one, other in zip(mine, theirs, strict=True):
            one.copy_(torch.randn(one.shape, dtype=one.dtype) * 0.05)
            other.copy_(one)
        packed.module.eval()
        packed.loss_sum(collate(examples, packed.pad_id, "cpu"))  # an evaluation first: it must spoil nothing
    assert {p.dtype for p in mine} == {torch.bfloat16}
    one, other = gradients(packed, examples), gradients(whole, examples)
    torch.testing.assert_close(one, other, atol=1e-2 * float(other.abs().max()), rtol=0)
    assert torch.nn.functional.cosine_similarity(one, other, 0) > 0.9999


def test_fused_kernels_fit_over_a_packed_base(make_plan: MakePlan, make_model: MakeModel) -> None:
    model = make_model(make_plan("qlora", settings={"targets": ("q_proj",)}, precision="bfloat16"))
    assert model.replaced == {"LlamaRMSNorm": 5, "LlamaMLP": 2}


def test_the_share_is_of_all_weights_however_packed(make_plan: MakePlan, make_model: MakeModel) -> None:
    packed, whole = make_model(make_plan("qlora")), make_model(make_plan("lora"))
    assert (packed.num_parameters, packed.num_trainable_parameters) == (
        whole.num_parameters,
        whole.num_trainable_parameters,
    )


def test_a_base_in_16_bits_is_trained_in_float32(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample]
) -> None:
    """The tiny base is not rounded twice: its weights in bfloat16 are those that are unpacked."""
    targets = ("q_proj", "down_proj")
    plan = make_plan("qlora", settings={"quantisation": "bfloat16", "targets": targets}, precision="float32")
    packed = make_model(plan)
    base = load_model(plan.base_model.path, dtype="float32", attention="sdpa")
    layers = [(name, m) for name, m in packed.module.named_modules() if isinstance(m, PackedLinear)]
    assert len(layers) == 2 * 7
    for name, layer in layers:
        plain = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        base.get_submodule(plain).weight.data = layer.weight.float()
    wide = {n: p for n, p in packed.base.named_parameters() if any(part in n for part in ("embed", "norm", "lm_head"))}
    for name, weight in wide.items():
        base.get_parameter(name).data = weight.data.clone()
    assert len(wide) >= 6
    whole = TrainableModel(base, Lora(plan.method), plan.training.seed)
    with torch.no_grad():
        mine = [p for p in packed.module.parameters() if p.requires_grad]
        theirs = [p for p in whole.module.parameters() if p.requires_grad]
        for one, other in zip(mine, theirs, strict=True):
            one.copy_(torch.randn(one.shape) * 0.05)
            other.copy_(one)
    assert {p.dtype for p in mine} == {torch.float32}
    one, other = gradients(packed, examples), gradients(whole, examples)
    torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=0)
