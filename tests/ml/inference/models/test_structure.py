"""The shape of a model without its weights, against figures that are published or counted from real modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ModelSourceError
from luthier.ml.inference.models.structure import read_structure, structure_of

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def test_a_model_of_eight_billion_parameters_costs_nothing_to_ask() -> None:
    found = structure_of(LLAMA_8B)
    assert found.num_parameters == 8_030_261_248  # as its model card says: 8.03 B
    assert (found.num_kv_heads, found.head_size, found.num_norms) == (8, 128, 2)
    assert not found.ties_embeddings
    assert found.is_gated
    assert found.is_silu_gated
    assert found.has_plain_rms_norm
    assert len(found.linear_layers) == 7 * 32
    assert found.num_matrix_parameters == found.num_active_parameters
    assert found.num_matrix_parameters == sum(x.num_inputs * x.num_outputs for x in found.linear_layers)


def test_a_token_meets_two_of_eight_experts() -> None:
    found = structure_of(MIXTRAL)
    assert found.num_parameters == 46_702_792_704  # 46.7 B in all
    embeddings = 2 * 32000 * 4096
    assert (found.num_active_parameters + embeddings) / 1e9 == pytest.approx(12.9, abs=0.1)  # 12.9 B active
    assert (found.num_experts, found.num_active_experts) == (8, 2)


def test_windows_head_norms_and_kinds_of_norm() -> None:
    small = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    gemma = structure_of({"model_type": "gemma3_text", "sliding_window": 32} | small | heads)
    assert gemma.has_head_norms
    assert gemma.num_norms == 4
    assert not gemma.has_plain_rms_norm  # (1 + w) * x / rms
    assert not gemma.is_silu_gated
    assert (gemma.sliding_window, gemma.num_windowed_layers) == (32, 5)  # every sixth looks at everything
    qwen = structure_of({"model_type": "qwen3"} | small | heads)
    assert qwen.has_head_norms
    assert qwen.sliding_window is None


def test_a_folder_is_read_as_its_description(tiny_model: Path) -> None:
    described = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    assert read_structure(str(tiny_model)) == structure_of(described)


def test_a_folder_that_changes_is_read_again(tiny_model: Path, tmp_path: Path) -> None:
    described = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    for num_layers in (2, 3):
        changed = described | {"num_hidden_layers": num_layers, "layer_types": None}
        (tmp_path / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        first = read_structure(str(tmp_path))
        assert first.num_layers == num_layers
        assert read_structure(str(tmp_path)) is first, "a config that has not changed is read once"


def test_a_folder_without_config_and_a_wrong_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"config\.json"):
        read_structure(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}', encoding="utf-8")
    with pytest.raises(ModelSourceError, match="no-such-architecture"):
        read_structure(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B | {"hidden_size": "big"}), encoding="utf-8")
    with pytest.raises(ModelSourceError, match="hidden_size"):
        read_structure(str(tmp_path))


@pytest.mark.parametrize(
    "config", [{}, {"model_type": None}, {"model_type": "gpt9"}, LLAMA_8B | {"hidden_size": "big"}]
)
def test_a_description_that_is_none_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ModelSourceError):
        structure_of(config)
