"""Merging: the same function, and nothing lost to rounding on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tests.vacuous import nonempty
from transformers import AutoModelForCausalLM

from luthier.core.errors import RequestError
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.inference.models.merging import merged_model, without_adapter
from luthier.ml.inference.models.quantised import unpack

IDS = torch.arange(30).reshape(2, 15)


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-3)  # an update of a few thousandths of the weights, as short runs make
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


@torch.no_grad()
def test_merged_it_is_the_same_function(tiny_model: Path, adapter: Path) -> None:
    apart = attach_adapter(load_model(tiny_model, dtype="float32", attention="sdpa"), adapter)(IDS).logits
    torch.testing.assert_close(
        merged_model(tiny_model, adapter, dtype="float32")(IDS).logits, apart, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_the_update_is_rounded_once(tiny_model: Path, adapter: Path) -> None:
    exact = merged_model(tiny_model, adapter, dtype="float32").state_dict()
    ours = merged_model(tiny_model, adapter, dtype="bfloat16").state_dict()
    assert all(nonempty(torch.equal(ours[name], weight.bfloat16()) for name, weight in exact.items()))
    # Merged in bfloat16 the base is rounded, then the update, then their sum.
    theirs = attach_adapter(load_model(tiny_model, dtype="bfloat16", attention="sdpa"), adapter)
    rough = theirs.merge_and_unload().state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    error = {k: float((s[name].float() - exact[name]).square().mean()) for k, s in (("ours", ours), ("rough", rough))}
    assert error["ours"] < error["rough"]


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_packed_base_is_merged_as_training_read_it(
    precision: Literal["float32", "bfloat16"], tiny_model: Path, adapter: Path
) -> None:
    # the tiny model is stored in float32: read in bfloat16 first, its matrices are packed differently
    trained = load_model(tiny_model, dtype=precision, attention="sdpa", quantisation="int8")
    unpack(trained)
    merged = merged_model(tiny_model, adapter, dtype="float32", quantisation="int8", packed_from=precision)
    expected = attach_adapter(trained.float(), adapter).merge_and_unload().state_dict()
    found = merged.state_dict()
    name = "model.layers.0.mlp.gate_proj.weight"  # the adapter leaves it alone
    assert torch.equal(found[name], expected[name])
    other = "bfloat16" if precision == "float32" else "float32"
    apart = merged_model(tiny_model, adapter, dtype="float32", quantisation="int8", packed_from=other).state_dict()
    assert not torch.equal(apart[name], expected[name])


@torch.no_grad()
def test_with_its_adapter_switched_off_a_model_is_its_base_to_the_bit(tiny_model: Path, adapter: Path) -> None:
    base = load_model(tiny_model, dtype="float32", attention="sdpa")
    expected = base(IDS).logits
    adapted = attach_adapter(base, adapter)
    tuned = adapted(IDS).logits
    assert not torch.equal(tuned, expected)
    with without_adapter(adapted.get_base_model()) as is_base:
        assert is_base
        assert torch.equal(adapted(IDS).logits, expected)
    assert torch.equal(adapted(IDS).logits, tuned)
    assert not any(weight.requires_grad for weight in nonempty(list(adapted.parameters())))


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM"),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["input_layernorm"], task_type="CAUSAL_LM"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_what_is_more_than_an_adapter_of_layers_is_not_switched_off(
    tiny_model: Path, config: LoraConfig | PromptTuningConfig
) -> None:
    base = load_model(tiny_model, dtype="float32", attention="sdpa")
    with without_adapter(base) as is_base:
        assert not is_base
    with without_adapter(get_peft_model(base, config).get_base_model()) as is_base:
        assert not is_base


def test_a_trained_prompt_cannot_be_merged(tiny_model: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(RequestError, match="holds a trained prompt"):
        merged_model(tiny_model, tmp_path / "prompt", dtype="float32")
