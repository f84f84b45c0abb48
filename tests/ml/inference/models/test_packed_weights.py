"""What published configs say of packed weights, as phrases; the configs are those of models on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ModelSourceError
from luthier.ml.inference.models.weights import PackedWeights, check_config, packed_weights, packing_of

_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
_GPTQ = {"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": False}
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


def test_a_packed_model_is_refused_for_training_with_what_serves_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": _AWQ}))
    with pytest.raises(ModelSourceError, match="AWQ, 4 bits in groups of 128") as caught:
        check_config(tmp_path)
    assert "--engine vllm" in caught.value.do
