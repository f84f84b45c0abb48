"""Activations computed again on the way back keep every bit of the gradients; precisions that meet at the head."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.architectures import SMALL, small
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.forward_path import ForwardPath
from luthier.core.plan import Plan
from luthier.core.recipe import MethodRecipe
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.resolve_method import resolve_method
from luthier.ml.training import forward_proof
from luthier.ml.training.forward_proof import prove_forward
from luthier.ml.training.methods.protocol import load_method
from luthier.ml.training.model import TrainableModel, collate


def gradients(plan: Plan, examples: list[TokenisedExample]) -> tuple[float, list[Tensor], int]:
    """Loss, gradients, and bytes of the tensors that the forward pass kept for the way back."""
    model = TrainableModel.load(plan)
    model.module.train()
    torch.manual_seed(7)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = model.loss_sum(collate(examples[:8], model.pad_id, "cpu"))
    loss.backward()
    found = [p.grad for p in model.module.parameters() if p.grad is not None]
    return loss.item(), found, sum(kept.values())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_recomputing_activations_changes_no_bit_of_the_gradients(
    make_plan: Callable[..., Any], examples: list[TokenisedExample], method: str
) -> None:
    dropout = 0.2 if method == "lora" else 0.0
    loss, plain, kept = gradients(make_plan(method, dropout=dropout), examples)
    again, recomputed, kept_again = gradients(make_plan(method, dropout=dropout, gradient_checkpointing=True), examples)
    assert again == loss
    assert len(plain) == len(recomputed) > 0
    assert all(torch.equal(one, other) for one, other in zip(plain, recomputed, strict=True))
    assert kept_again < kept


def test_a_body_that_ends_in_fp32_meets_a_head_in_bfloat16(examples: list[TokenisedExample]) -> None:
    """Mamba2 keeps its residual in fp32; its own forward narrows it before the head."""
    config = AutoConfig.for_model("mamba2", **SMALL["mamba2"] | {"vocab_size": 300})
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    recipe = MethodRecipe(name="lora", rank=4, dropout=0.0)
    method = load_method(resolve_method(recipe, structure_of(small("mamba2")), "cpu", Provenance()))
    model = TrainableModel(base, method, 0)
    batch = collate(examples[:2], model.pad_id, "cpu")
    loss = model.loss_sum(batch)[0]
    loss.backward()
    own = model.module(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.rows].float()
    expected = torch.nn.functional.cross_entropy(own, batch.targets, reduction="sum")
    torch.testing.assert_close(loss.float(), expected, atol=0, rtol=1e-2)


@pytest.mark.parametrize("number", [-1, 300, None])
def test_rows_of_two_lengths_are_padded_where_the_config_names_no_token_of_the_model(
    examples: list[TokenisedExample], number: int | None
) -> None:
    config = AutoConfig.for_model("llama", **SMALL["llama"] | {"vocab_size": 300})
    base = AutoModelForCausalLM.from_config(config)
    recipe = MethodRecipe(name="lora", rank=4, dropout=0.0)
    method = load_method(resolve_method(recipe, structure_of(small("llama")), "cpu", Provenance()))
    base.config.pad_token_id = number
    model = TrainableModel(base, method, 0)
    rows = sorted(examples, key=lambda row: row.num_tokens)
    short, long = rows[0], rows[-1]
    assert short.num_tokens < long.num_tokens
    with torch.no_grad():
        together = model.loss_sum(collate([short, long], model.pad_id, "cpu"))[0]
        apart = [model.loss_sum(collate([row], model.pad_id, "cpu"))[0] for row in (short, long)]
    assert float(together) == pytest.approx(float(sum(apart)), rel=1e-5)


def test_a_base_is_proved_once_and_again_once_its_files_change(
    make_plan: Callable[..., Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    plan = make_plan()
    plan = plan.model_copy(update={"base_model": plan.base_model.model_copy(update={"path": str(folder)})})
    proved: list[str] = []

    def prove(base: Any) -> ForwardPath:
        proved.append(str(base.dtype))
        return prove_forward(base)

    monkeypatch.setattr(forward_proof, "prove_forward", prove)
    paths = [TrainableModel.load(plan).path for _ in range(3)]
    assert (len(proved), len(set(paths)), paths[0].is_fast) == (1, 1, True)
    half = plan.model_copy(update={"training": plan.training.model_copy(update={"precision": "bfloat16"})})
    assert TrainableModel.load(half).path.is_fast
    assert proved == ["torch.float32", "torch.bfloat16"]
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][0, 0] = float("nan")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match="not finite"):
        TrainableModel.load(plan)
