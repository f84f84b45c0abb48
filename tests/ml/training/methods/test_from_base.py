"""PiSSA and OLoRA: the start that the papers give, PEFT's training, and a base that nobody changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.ml.training.test_loop import run
from tests.vacuous import nonempty
from transformers import AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import Plan
from luthier.ml.training.checkpoint import save_model
from luthier.ml.training.methods.from_base import FromBase
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.optimizer import MasterOptimizer

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
IDS = torch.arange(20).reshape(2, 10)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_equals_peft_which_changes_the_base(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], method: str
) -> None:
    plan = make_plan(method, settings={"num_svd_iterations": 0, "alpha": 6.0}, clip_gradient_norm=1e9)
    ours = make_model(plan, torch.float64)
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=list(plan.method.targets), init_lora_weights=method, task_type="CAUSAL_LM"
    )
    theirs = get_peft_model(base, config).double()
    optimizer = MasterOptimizer(ours.module, plan.training)
    adam = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        batch = collate(examples[:6], ours.pad_id, "cpu")
        ours.loss_sum(batch)[0].backward()
        optimizer.collect()
        optimizer.step(optimizer.gradient_norm(), 1.0)
        logits = theirs(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.rows]
        torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").backward()
        adam.step()
        adam.zero_grad()
    with torch.no_grad():
        one, other = ours.module(IDS).logits, theirs(IDS).logits
    # PEFT makes the start and what is left of the base in fp32
    torch.testing.assert_close(one, other, atol=2e-4 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_the_start_is_the_base_to_the_bit_even_under_dropout(
    make_plan: MakePlan, make_model: MakeModel, method: str
) -> None:
    plan = make_plan(method, dropout=0.5)
    model = make_model(plan)
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float32)
    with torch.no_grad():
        expected = base(IDS).logits
        model.module.train()
        torch.testing.assert_close(model.module(IDS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("iterations", [0, 16])
def test_pissa_takes_the_best_approximation_of_its_rank(
    make_plan: MakePlan, make_model: MakeModel, iterations: int
) -> None:
    model = make_model(make_plan("pissa", settings={"num_svd_iterations": iterations}))
    assert isinstance(model.method, FromBase)
    for forward in nonempty(model.method.forwards.values()):
        weight = forward.layer.get_base_layer().weight
        left = weight + forward.scale * forward.minus_first_b @ forward.first_a
        values = torch.linalg.svdvals(weight)
        # Eckart and Young: nothing of rank 4 leaves less than the values from the fifth on
        assert float(left.norm()) == pytest.approx(float(values[4:].norm()), rel=1e-3)


def test_olora_starts_from_orthonormal_columns(make_plan: MakePlan, make_model: MakeModel) -> None:
    model = make_model(make_plan("olora"))
    assert isinstance(model.method, FromBase)
    for forward in model.method.forwards.values():
        torch.testing.assert_close(forward.b.t() @ forward.b, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_the_outcome_is_a_plain_adapter_of_twice_the_rank(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, method: str
) -> None:
    plan = make_plan(method, precision="bfloat16", learning_rate=0.1)
    model = make_model(plan)
    run(plan, model, tmp_path / "c", examples, with_validation=False)
    folder, _ = save_model(model, Path(plan.base_model.path), tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16.0, True)
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.bfloat16)
    wide = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.bfloat16).float()
    loaded = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
    model.module.eval()
    with torch.no_grad():
        one, other = model.module(IDS).logits.float(), loaded(IDS).logits.float()
    # the base was never rounded again: ours is as near to the adapter in fp32 as PEFT's is, within bf16's own noise
    with torch.no_grad():
        exact = PeftModel.from_pretrained(wide, str(folder))(IDS).logits
    noise = float((other - exact).abs().mean())
    assert float((one - exact).abs().mean()) < 1.3 * noise
