"""Models that do more with their logits than their head does are refused, whatever the setting is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.core.errors import RequestError
from luthier.train.head_proof import refuse_other_heads

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def model(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | changes)).to(dtype)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "olmo2", "smollm3", "gemma3_text", "mixtral"])
def test_a_plain_head_passes_and_the_model_is_left_as_it_was(kind: str, dtype: torch.dtype) -> None:
    found = model(kind, dtype).train()
    before = {name: value.clone() for name, value in found.state_dict().items()}
    refuse_other_heads(found)
    assert found.training
    assert all(torch.equal(before[name], value) for name, value in found.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
        ("gemma2", {"final_logit_softcapping": 0.05, "head_dim": 8}),
        ("falcon_h1", {"lm_head_multiplier": 3.0, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8}),
    ],
)
def test_what_scales_or_caps_its_logits_is_refused(kind: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="its logits differ by") as caught:
        refuse_other_heads(model(kind, **changes))
    assert "would be wrong" in caught.value.do


def test_a_bias_is_refused_even_one_of_zeros() -> None:
    biased = model("phi")
    assert biased.lm_head.bias is not None
    with pytest.raises(RequestError, match="its head has a bias"):
        refuse_other_heads(biased)


def test_a_scale_of_one_is_no_reason() -> None:
    refuse_other_heads(model("granite", logits_scaling=1.0))


def test_no_number_is_no_proof() -> None:
    broken = model("llama")
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    with pytest.raises(RequestError):
        refuse_other_heads(broken)
