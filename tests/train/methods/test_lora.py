"""Our fused LoRA is PEFT's LoRA, in every bit of meaning: outputs, gradients, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.core.plan import Plan
from luthier.train.methods.lora import Dropout, LoraProduct, keep
from luthier.train.model import TrainableModel


@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_are_the_derivatives(dropped: bool) -> None:
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    x, weight, bias = draw(2, 3, 5).requires_grad_(), draw(4, 5), draw(4)
    a, b = draw(2, 5).requires_grad_(), draw(4, 2).requires_grad_()
    dropout = Dropout(0.4, key=7) if dropped else None
    assert torch.autograd.gradcheck(lambda x, a, b: LoraProduct.apply(x, weight, bias, a, b, dropout, 0.7), (x, a, b))


def test_equals_peft_in_logits_and_gradients(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    plan = make_plan()
    ours = make_model(plan, torch.float64)
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float64)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    theirs = get_peft_model(base, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # B is zero at the start, which would hide half of the mistakes
        for (name, p), (other_name, q) in zip(ours.module.named_parameters(), theirs.named_parameters(), strict=True):
            assert name == other_name
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.1)
                q.copy_(p)
    ids = torch.arange(20).reshape(2, 10)
    ours_out, theirs_out = ours.module(ids).logits, theirs(ids).logits
    torch.testing.assert_close(ours_out, theirs_out)
    ours_out.square().sum().backward()
    theirs_out.square().sum().backward()
    trained = [
        (p.grad, q.grad) for p, q in zip(ours.module.parameters(), theirs.parameters(), strict=True) if p.requires_grad
    ]
    assert len(trained) == 8
    for one, other in trained:
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.25, 0.3, 0.0001])
def test_dropout_keeps_the_stated_fraction(probability: float, dtype: torch.dtype) -> None:
    dropout = Dropout(probability, key=1)
    x = torch.full((1000, 1001), 1.5, dtype=dtype)
    kept = keep(x, dropout.mask(x))
    assert set(kept.unique().tolist()) == {0.0, 1.5}, "what is kept is kept to the bit"
    assert dropout.kept_fraction == pytest.approx(1 - probability, abs=2e-5)
    deviation = (dropout.kept_fraction * (1 - dropout.kept_fraction) / x.numel()) ** 0.5
    assert abs(float((kept != 0).double().mean()) - dropout.kept_fraction) < 5 * deviation


def kept_ones(probability: float, key: int, x: torch.Tensor) -> torch.Tensor:
    return keep(x, Dropout(probability, key).mask(x))


def test_dropout_neighbours_are_independent() -> None:
    flat = (kept_ones(0.5, 2, torch.ones(500, 2000)) - 0.5).flatten().double()
    for lag in (1, 2, 3, 4, 2000):
        assert abs(float((flat[:-lag] * flat[lag:]).mean()) * 4) < 5e-3


def test_the_same_key_gives_the_same_mask_in_every_precision() -> None:
    x = torch.ones(7, 9)
    first = kept_ones(0.5, 3, x)
    assert torch.equal(kept_ones(0.5, 3, x), first)
    assert torch.equal(kept_ones(0.5, 3, x.bfloat16()).float(), first)
    assert not torch.equal(kept_ones(0.5, 4, x), first)


def test_a_probability_too_small_to_draw_drops_nothing() -> None:
    x = torch.ones(3, 3)
    assert Dropout(1e-9, key=0).mask(x) is None
    assert keep(x, None) is x
    assert Dropout(1e-9, key=0).kept_fraction == 1.0


def test_saved_adapter_loads_with_peft_and_gives_the_same_logits(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path
) -> None:
    plan = make_plan()
    model = make_model(plan)
    with torch.no_grad():
        for p in model.module.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape) * 0.1)
    digest = model.method.save(model.module, Path(plan.base_model.path), tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(plan.base_model.path), str(tmp_path))
    ids = torch.arange(10)[None]
    torch.testing.assert_close(loaded(ids).logits, model.module(ids).logits, atol=1e-5, rtol=1e-5)
    names = list(load_file(tmp_path / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert len(digest) == 64


def test_only_the_adapter_is_trained(make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]) -> None:
    model = make_model(make_plan())
    trained = [name for name, p in model.module.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert model.num_trainable_parameters == sum(p.numel() for n, p in model.module.named_parameters() if "lora_" in n)
