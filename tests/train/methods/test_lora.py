"""Our fused LoRA is PEFT's LoRA, in every bit of meaning: outputs, gradients, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.core.plan import Plan
from luthier.train.model import TrainableModel


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
