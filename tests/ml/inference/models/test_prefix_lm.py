"""A model that was trained to read prompts in both directions is not evaluated or served from left to right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.core.errors import ModelSourceError
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.prefix_lm import is_prefix_lm, refuse_configured_prefix_lm

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip


def make(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | changes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


def test_a_prefix_language_model_is_refused_by_name_and_a_causal_copy_of_its_folder_loads(tmp_path: Path) -> None:
    for is_prefix in (True, False):
        folder = tmp_path / str(is_prefix)
        make("hrm_text", head_dim=8, prefix_lm=is_prefix).save_pretrained(folder)
        for attention in ("sdpa", "eager"):
            if not is_prefix:
                assert load_model(folder, dtype="float32", attention=attention).config.prefix_lm is False  # type: ignore[arg-type]
                continue
            with pytest.raises(ModelSourceError, match="in both directions") as refused:
                load_model(folder, dtype="float32", attention=attention)  # type: ignore[arg-type]
            assert str(folder) in refused.value.came
            assert "prefix_lm" in refused.value.do


def test_an_engine_that_loads_it_elsewhere_refuses_it_by_its_config(tmp_path: Path) -> None:
    for is_prefix in (True, False):
        folder = tmp_path / str(is_prefix)
        AutoConfig.for_model("hrm_text", **SIZES | {"head_dim": 8, "prefix_lm": is_prefix}).save_pretrained(folder)
    refuse_configured_prefix_lm(tmp_path / "False")
    with pytest.raises(ModelSourceError, match="in both directions"):
        refuse_configured_prefix_lm(tmp_path / "True")
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "config.json").write_text('{"model_type": "of-tomorrow"}', encoding="utf-8")
    refuse_configured_prefix_lm(unknown)  # vLLM may know it


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {}),
        ("llama", {}),
        ("bert", {"is_decoder": True}),
        ("bert", {}),  # an encoder: refused elsewhere, by another name
        ("roberta", {"is_decoder": True, "type_vocab_size": 1}),
        ("openai-gpt", {}),
    ],
)
def test_kinds_of_tokens_that_are_only_embedded_make_no_prefix_language_model(
    kind: str, changes: dict[str, Any]
) -> None:
    assert not is_prefix_lm(make(kind, **changes))


def test_it_is_seen_in_narrow_weights_too() -> None:
    assert is_prefix_lm(make("hrm_text", head_dim=8, prefix_lm=True).to(torch.bfloat16))
    assert not is_prefix_lm(make("hrm_text", head_dim=8, prefix_lm=False).to(torch.bfloat16))
