"""DoRA: PEFT's outputs, gradients and norms, without forming B A."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from tests.vacuous import nonempty
from transformers import AutoModelForCausalLM

from luthier.core.plan import Plan
from luthier.ml.training.methods.lora import RowScale
from luthier.ml.training.model import TrainableModel

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]


def test_equals_peft_in_logits_and_gradients(make_plan: MakePlan, make_model: MakeModel) -> None:
    plan = make_plan("dora")
    ours = make_model(plan, torch.float64)
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float64)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(plan.method.targets), use_dora=True, task_type="CAUSAL_LM"
    )
    theirs = get_peft_model(base, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for (name, p), (other_name, q) in nonempty(
            zip(ours.module.named_parameters(), theirs.named_parameters(), strict=True)
        ):
            assert name == other_name
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.1)
                q.copy_(p)
    ids = torch.arange(20).reshape(2, 10)
    ours_out, theirs_out = ours.module(ids).logits, theirs(ids).logits
    torch.testing.assert_close(ours_out, theirs_out, atol=1e-6, rtol=1e-6)  # our norms are summed up in fp32
    ours_out.square().sum().backward()
    theirs_out.square().sum().backward()
    trained = [
        (p.grad, q.grad) for p, q in zip(ours.module.parameters(), theirs.parameters(), strict=True) if p.requires_grad
    ]
    assert len(trained) == 12
    for one, other in trained:
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=0)


def test_at_the_start_it_is_the_base_to_the_bit(make_plan: MakePlan, make_model: MakeModel) -> None:
    plan = make_plan("dora", precision="bfloat16")
    model = make_model(plan)
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.bfloat16)
    with torch.no_grad():
        for layer in (0, 1):
            for part in ("self_attn.q_proj", "mlp.down_proj"):
                x = torch.randn(7, 64 if "down" in part else 32, dtype=torch.bfloat16)
                mine = model.module.base_model.model.model.layers[layer].get_submodule(part)
                assert torch.equal(mine(x), base.model.layers[layer].get_submodule(part)(x))


def test_row_scale_is_differentiated_right() -> None:
    torch.manual_seed(0)
    x, length = torch.randn(3, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5
    norm = torch.rand(4, dtype=torch.float64) + 0.5
    assert torch.autograd.gradcheck(
        lambda x, m: RowScale.apply(x, m, norm), (x.requires_grad_(), length.requires_grad_())
    )


def test_norms_are_made_anew_when_the_adapter_has_moved(make_plan: MakePlan, make_model: MakeModel) -> None:
    model = make_model(make_plan("dora"))
    layer = model.module.base_model.model.model.layers[0].self_attn.q_proj
    forward = layer.forward
    first = forward.current_norm()
    assert forward.current_norm() is first
    with torch.no_grad():
        layer.lora_B["default"].weight.add_(0.5)
    merged = forward.matrix + forward.scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(forward.current_norm(), merged.norm(dim=1))


def test_norms_that_were_computed_while_answers_were_drawn_are_trained_with(
    make_plan: MakePlan, make_model: MakeModel
) -> None:
    layer = make_model(make_plan("dora")).module.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.add_(0.5)
    with torch.inference_mode():
        layer(torch.ones(3, 32))
    layer(torch.ones(3, 32)).sum().backward()
    assert float(layer.lora_A["default"].weight.grad.norm()) > 0
