"""Our fused LoRA is PEFT's LoRA, in every bit of meaning: outputs, gradients, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as PeftLoraLinear
from safetensors.torch import load_file
from tests.vacuous import nonempty
from tests.zoo.families import make_family
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.core.plan import MethodPlan, Plan
from luthier.ml.inference.mixed_adapters import MixedAdapters
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.training.methods.lora import Joined, Lora
from luthier.ml.training.model import TrainableModel


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
        for (name, p), (other_name, q) in nonempty(
            zip(ours.module.named_parameters(), theirs.named_parameters(), strict=True)
        ):
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


def joined(model: TrainableModel) -> list[Joined]:
    forwards = [layer.forward for layer in model.module.modules() if isinstance(layer, PeftLoraLinear)]
    return list(dict.fromkeys(forward.joined for forward in forwards if forward.joined is not None))


def losses_and_gradients(model: TrainableModel) -> tuple[Tensor, list[Tensor]]:
    """Of two micro-batches one after the other, with dropout."""
    torch.manual_seed(5)
    model.module.train()
    ids = torch.arange(24).reshape(2, 12)
    losses = []
    for batch in (ids, ids[:, :7]):
        out = model.body(input_ids=batch, position_ids=torch.arange(batch.shape[1])[None], use_cache=False)
        losses.append(out.last_hidden_state.square().sum())
        losses[-1].backward()
    gradients = [p.grad.clone() for p in model.module.parameters() if p.grad is not None]
    model.module.zero_grad()
    return torch.stack(losses), gradients


@pytest.mark.parametrize("name", ["lora", "rslora", "pissa", "adalora"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_matrices_of_one_input_computed_together_are_the_same(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    name: str,
    dropout: float,
    checkpointing: bool,
) -> None:
    targets = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    plan = make_plan(name, dropout, {"targets": targets}, gradient_checkpointing=checkpointing)
    model = make_model(plan, torch.float64)
    with torch.no_grad():
        for p in model.module.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)
    groups = joined(model)
    assert [len(group.forwards) for group in groups] == [3, 2] * model.base.config.num_hidden_layers
    losses, gradients = losses_and_gradients(model)
    assert not any(group.is_apart or group.ready or group.x is not None for group in groups)
    for group in groups:
        group.is_apart = True
    wanted_losses, wanted = losses_and_gradients(model)
    torch.testing.assert_close(losses, wanted_losses)
    assert len(gradients) == len(wanted)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_what_another_input_gives_is_never_taken(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    model = make_model(make_plan(settings={"targets": ("q_proj", "k_proj", "v_proj")}), torch.float64)
    group = joined(model)[0]
    q, k, v = group.forwards
    width = model.base.config.hidden_size
    x, other = torch.randn(2, 3, width, dtype=torch.float64), torch.randn(2, 3, width, dtype=torch.float64)
    model.module.eval()
    alone = k(other)
    q(x)
    torch.testing.assert_close(k(other), alone)
    assert group.ready
    q(x)  # k and v of the first x were never asked for: these do not read one input
    assert group.is_apart
    assert not group.ready
    torch.testing.assert_close(k(other), alone)
    assert v(x).shape == k(x).shape


def test_adapters_of_one_input_share_its_mask_and_those_of_another_do_not(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel]
) -> None:
    model = make_model(make_plan(settings={"targets": ("q_proj", "k_proj", "v_proj")}, dropout=0.5), torch.float64)
    model.module.train()
    group = joined(model)[0]
    group.is_apart = True
    q, k, v = group.forwards
    x, other = torch.randn(2, 2, 3, model.base.config.hidden_size, dtype=torch.float64)
    first, second, elsewhere = group.draw(q, x), group.draw(k, x), group.draw(v, other)
    assert first is not None
    assert first == second
    assert first != elsewhere
    assert group.drawn is None, "the input is released after the last"


def test_an_adapter_on_the_shared_experts_of_laguna_is_found_again(tmp_path: Path) -> None:
    """Its checkpoints call them `shared_expert.`, a pattern of transformers that also matches `shared_experts`."""
    base = make_family("laguna", tmp_path / "base")
    plan = MethodPlan(
        name="lora", rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "up_proj"), num_trainable_parameters=1
    )
    method, ids = Lora(plan), torch.arange(5, 40)[None]
    trained = method.prepare(load_model(base, dtype="float32", attention="sdpa"), 0).eval()
    with torch.no_grad():
        before = trained(input_ids=ids).logits
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        expected = trained(input_ids=ids).logits
        assert not torch.allclose(expected, before, atol=1e-2)
        (tmp_path / "adapter").mkdir()
        method.save(trained, base, tmp_path / "adapter")
        assert any(".shared_expert." in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
        plain = attach_adapter(load_model(base, dtype="float32", attention="sdpa"), tmp_path / "adapter")
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
        served = load_model(base, dtype="float32", attention="sdpa")
        mixed = MixedAdapters(served)
        mixed.load("tuned", str(tmp_path / "adapter"))
        mixed.use(["tuned"])
        torch.testing.assert_close(served(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
