"""What published configs say of packed weights, as phrases; the configs are those of models on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from luthier.core.errors import ModelSourceError
from luthier.ml.inference.models.weights import PackedWeights, check_config, packed_weights, packing_of

_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
_GPTQ = {"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": False}
_EARLY_GPTQ = {"bits": 4, "group_size": 32, "desc_act": True, "damp_percent": 0.1, "sym": True}
_EARLY_AWQ = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
_W4A16 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 64}, "input_activations": None}},
}
_W8A8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}},
}
_MIXED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"a": {"weights": {"num_bits": 8}}, "b": {"weights": {"num_bits": 4}}},
}


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        (_AWQ, "AWQ, 4 bits in groups of 128"),
        (_GPTQ, "GPTQ, 8 bits"),
        (_FP8, "FP8, 8 bits, activations in 8"),
        (_W4A16, "compressed-tensors, 4 bits in groups of 64"),
        (_W8A8, "compressed-tensors, 8 bits, activations in 8"),
        (_MIXED, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"quant_method": "mxfp4"}, "MXFP4, 4 bits"),
        ({"quant_method": "other", "bits": True}, "other"),
        ({}, None),
        ({"config_groups": []}, "unknown"),
    ],
)
def test_the_phrase_of_a_config(config: dict[str, Any], phrase: str | None) -> None:
    found = packing_of({"quantization_config": config} if config else {})
    assert (None if found is None else found.phrase) == phrase


def test_a_language_model_inside_another_model_says_it_for_itself() -> None:
    assert packing_of({"text_config": {"quantization_config": _AWQ}}) == PackedWeights("awq", 4, 128)


def test_a_folder_without_a_readable_config_is_left_to_what_loads_it(tmp_path: Path) -> None:
    assert packed_weights(tmp_path) is None
    (tmp_path / "config.json").write_text("[]")
    assert packed_weights(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    assert packed_weights(tmp_path) is None


@pytest.mark.parametrize(
    ("config", "phrase"), [(_AWQ, "AWQ, 4 bits in groups of 128"), (_GPTQ, "GPTQ, 8 bits"), (_W4A16, "compressed-tens")]
)
def test_a_packed_model_is_refused_with_what_trains_and_what_serves_it(
    config: dict[str, Any], phrase: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    with pytest.raises(ModelSourceError, match=phrase) as caught:
        check_config(tmp_path)
    assert caught.value.do == (
        "name the same model in 16 bits, which can be trained, evaluated and exported, and which method.name: qlora "
        "quantises itself; vLLM serves this one: luthier serve FOLDER --engine vllm"
    )


def early_folder(folder: Path, name: str, content: object, tensor: str) -> Path:
    """A folder whose `config.json` says nothing of packed weights."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / name).write_text(json.dumps(content))
    save_file({tensor: torch.zeros(4, 4)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("quantize_config.json", _EARLY_GPTQ, PackedWeights("gptq", 4, 32, described_in="quantize_config.json")),
        ("quant_config.json", _EARLY_AWQ, PackedWeights("awq", 4, 128, described_in="quant_config.json")),
        # Some tools wrote AWQ's to the other file, with the method.
        (
            "quantize_config.json",
            {"quant_method": "awq", "bits": 4},
            PackedWeights("awq", 4, described_in="quantize_config.json"),
        ),
    ],
)
def test_folders_of_early_tools_say_it_in_a_file_of_its_own(
    name: str, content: dict[str, Any], expected: PackedWeights, tmp_path: Path
) -> None:
    folder = early_folder(tmp_path / "early", name, content, "model.layers.0.mlp.up_proj.qweight")
    assert packed_weights(folder) == expected
    with pytest.raises(ModelSourceError, match=f"quantised already \\({expected.phrase}\\)") as caught:
        check_config(folder)
    wanted = (
        f'add the content of {name} to config.json as quantization_config, with "quant_method": "{expected.method}"'
    )
    assert f"vLLM serves this one: {wanted}, then luthier serve" in caught.value.do
    # Which is what it says, done.
    (folder / "config.json").write_text(
        json.dumps({"quantization_config": content | {"quant_method": expected.method}})
    )
    found = packed_weights(folder)
    assert found is not None
    assert (found.method, found.before_vllm) == (expected.method, "")


def test_such_a_file_beside_plain_weights_means_nothing(tmp_path: Path) -> None:
    plain = early_folder(tmp_path / "plain", "quantize_config.json", _EARLY_GPTQ, "model.layers.0.mlp.up_proj.weight")
    assert packed_weights(plain) is None
    assert check_config(plain) == {}
    broken = early_folder(tmp_path / "broken", "quant_config.json", [], "model.layers.0.mlp.up_proj.qweight")
    assert packed_weights(broken) is None
    (plain / "model.safetensors").write_bytes(b"damaged")
    assert packed_weights(plain) is None, "what loads the model reports it"
