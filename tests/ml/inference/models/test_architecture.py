"""Which class a folder is, by what transformers maps it to; image-text models load and save as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedConfig

from luthier.core.errors import ModelSourceError
from luthier.ml.inference.models.architecture import (
    config_of,
    empty_model,
    language_model,
    load_config,
    model_class,
    outside_modules,
    text_config,
)
from luthier.ml.inference.models.loading import load_model

TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def composite(kind: str = "gemma3", **changes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(kind, text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, **changes)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    torch.manual_seed(0)
    empty_model(composite(), device="cpu", dtype=torch.float32).save_pretrained(str(folder))
    return folder


def test_a_plain_config_is_its_own_text_config_and_has_nothing_outside() -> None:
    config = config_of({"model_type": "llama", **TEXT})
    model = empty_model(config)
    assert model_class(config).__name__ == "LlamaForCausalLM"
    assert text_config(config) is config
    assert outside_modules(model) == ()
    assert language_model(model) is model.model


@pytest.mark.parametrize(
    ("kind", "name", "body"),
    [
        ("gemma3", "Gemma3ForConditionalGeneration", "Gemma3TextModel"),
        ("gemma4", "Gemma4ForConditionalGeneration", "Gemma4TextModel"),
        ("mistral3", "Mistral3ForConditionalGeneration", "MistralModel"),
        ("qwen3_vl", "Qwen3VLForConditionalGeneration", "Qwen3VLTextModel"),
        ("qwen3_5", "Qwen3_5ForConditionalGeneration", "Qwen3_5TextModel"),
        ("llama4", "Llama4ForConditionalGeneration", "Llama4TextModel"),
    ],
)
def test_an_image_text_model_is_taken_as_published(kind: str, name: str, body: str) -> None:
    config = AutoConfig.for_model(kind)
    assert model_class(config).__name__ == name
    model = empty_model(config)
    assert type(language_model(model)).__name__ == body
    assert text_config(config) is not config
    inside = {id(p) for p in language_model(model).parameters()} | {id(model.get_output_embeddings().weight)}
    outside = {id(p) for part in outside_modules(model) for p in model.get_submodule(part).parameters()}
    assert not inside & outside
    assert {id(p) for p in model.parameters()} == inside | outside


def test_the_body_is_found_beside_a_head_that_is_called_decoder() -> None:
    """ModernBERT's decoder: `get_decoder` of transformers returns the head."""
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id"), 0) | {"eos_token_id": 2, "sep_token_id": 2}
    model = empty_model(config_of({"model_type": "modernbert-decoder", "num_attention_heads": 4, **sizes, **tokens}))
    assert language_model(model) is model.model


def test_architectures_decides_where_both_classes_know_the_config() -> None:
    assert model_class(AutoConfig.for_model("qwen3_5", architectures=["Qwen3_5ForCausalLM"])).__name__ == (
        "Qwen3_5ForCausalLM"
    )


def test_an_image_text_model_comes_back_with_the_names_that_it_was_published_with(
    published: Path, tmp_path: Path
) -> None:
    model = load_model(published, dtype="float32", attention="sdpa")
    assert type(model).__name__ == "Gemma3ForConditionalGeneration"
    model.save_pretrained(str(tmp_path))
    before, after = (load_file(folder / "model.safetensors") for folder in (published, tmp_path))
    assert set(before) == set(after)
    assert any("vision_tower" in name for name in after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("part", ["vision_tower", "language_model"])
def test_a_tensor_that_misses_is_named_whether_in_a_tower_or_in_the_language_model(
    published: Path, tmp_path: Path, part: str
) -> None:
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    tensors = load_file(published / "model.safetensors")
    gone = next(name for name in sorted(tensors) if part in name)
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelSourceError, match="missing keys"):
        load_model(tmp_path, dtype="float32", attention="sdpa")


def test_an_architecture_that_is_not_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(ModelSourceError, match="no-such-architecture") as caught:
        load_config(tmp_path)
    assert "version of transformers" in caught.value.do


def test_what_reads_one_text_and_writes_another_is_refused() -> None:
    with pytest.raises(ModelSourceError, match="encoder and a decoder"):
        model_class(AutoConfig.for_model("t5"))


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(ModelSourceError, match="no causal or image-text model"):
        model_class(AutoConfig.for_model("vit"))
