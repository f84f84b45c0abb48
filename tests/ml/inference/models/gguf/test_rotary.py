"""Rotary embeddings of GGUF files: the config of the converted model has what a file states, or the file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from luthier.core.child_process.channel import Channel
from luthier.core.errors import ModelSourceError
from luthier.ml.inference.models.gguf.worker import convert
from luthier.ml.inference.models.loading import load_model
from luthier.testing.tiny import make_tiny_model, write_tiny_gguf

_LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
_SCALED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1_000_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "llama3": _LLAMA_3,
}


def _model(folder: Path, rope: dict[str, Any]) -> Path:
    made = make_tiny_model(folder, hidden=64)
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    (made / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}), encoding="utf-8")
    return made


def _convert(file: Path, target: Path) -> None:
    # In this process: a child that loads torch takes seconds.
    channel = SimpleNamespace(emit=lambda _: None)
    convert({"gguf": str(file), "target": str(target)}, cast("Channel", channel))


@pytest.mark.parametrize("kind", _SCALED)
def test_a_converted_model_reads_long_texts_as_the_one_in_the_file(kind: str, tmp_path: Path) -> None:
    own = _model(tmp_path / "own", _SCALED[kind])
    file = write_tiny_gguf(own, tmp_path / "model.gguf")
    (tmp_path / "made").mkdir()
    _convert(file, tmp_path / "made")
    expected, found = (load_model(one, dtype="bfloat16", attention="sdpa") for one in (own, tmp_path / "made"))
    rope = found.config.rope_parameters
    assert {name: rope[name] for name in _SCALED[kind]} == _SCALED[kind]
    ids = torch.arange(400).remainder(300)[None] + 3
    unscaled = _model(tmp_path / "plain", {"rope_type": "default", "rope_theta": 10_000.0})
    plain = load_model(unscaled, dtype="bfloat16", attention="sdpa")
    with torch.no_grad():
        logits = expected(ids).logits
        torch.testing.assert_close(found(ids).logits, logits)
        # Without its scaling it is another function.
        assert not torch.allclose(plain(ids).logits, logits, atol=0.1)


def test_frequencies_that_are_divided_in_another_way_are_refused(tmp_path: Path) -> None:
    own = _model(tmp_path / "own", _LLAMA_3 | {"original_max_position_embeddings": 4096})
    file = write_tiny_gguf(own, tmp_path / "model.gguf")
    (tmp_path / "made").mkdir()
    with pytest.raises(ModelSourceError, match=r"divides its frequencies \(rope_freqs\.weight\)") as caught:
        _convert(file, tmp_path / "made")
    assert "hub" in caught.value.do


def _header(file: Path, kind: str, tensors: tuple[str, ...] = (), **values: float | str) -> Path:
    """A GGUF file with rotary entries alone."""
    import gguf
    import numpy as np

    out = gguf.GGUFWriter(file, kind)
    for key, value in values.items():
        name = f"{kind}.rope.{key.replace('__', '.')}"
        if isinstance(value, str):
            out.add_string(name, value)
        elif isinstance(value, int):
            out.add_uint32(name, value)
        else:
            out.add_float32(name, value)
    for tensor in tensors:
        out.add_tensor(tensor, np.ones(8, dtype=np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


def test_the_base_is_that_of_the_file_where_transformers_reads_none(tmp_path: Path) -> None:
    from transformers import Starcoder2Config

    from luthier.ml.inference.models.gguf.rotary import restore_rotary

    config = Starcoder2Config(hidden_size=64, num_attention_heads=4)
    assert config.rope_parameters["rope_theta"] == 10_000.0
    restore_rotary(config, _header(tmp_path / "f.gguf", "starcoder2", freq_base=100_000.0))
    assert config.rope_parameters["rope_theta"] == 100_000.0
    assert config.rope_parameters["rope_type"] == "default"


def test_only_layers_with_full_attention_are_scaled(tmp_path: Path) -> None:
    from transformers import Gemma3TextConfig

    from luthier.ml.inference.models.gguf.rotary import restore_rotary

    config = Gemma3TextConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=6)
    restore_rotary(
        config,
        _header(
            tmp_path / "f.gguf",
            "gemma3",
            freq_base=2_000_000.0,
            freq_base_swa=20_000.0,
            dimension_count=256,
            scaling__type="linear",
            scaling__factor=8.0,
        ),
    )
    full, sliding = (config.rope_parameters[f"{kind}_attention"] for kind in ("full", "sliding"))
    assert (full["rope_type"], full["factor"], full["rope_theta"]) == ("linear", 8.0, 2_000_000.0)
    assert (sliding["rope_type"], sliding["rope_theta"]) == ("default", 20_000.0)


@pytest.mark.parametrize(
    ("values", "tensors", "why"),
    [
        ({"dimension_count": 12}, (), "rotates 12 values of each head, where transformers would rotate 16"),
        ({"scaling__type": "longrope"}, (), "LongRoPE"),
        ({}, ("rope_factors_long.weight", "rope_factors_short.weight"), "LongRoPE"),
        ({"scale_linear": 2.0}, (), "states rope.scale_linear"),
        ({"scaling__type": "yarn", "scaling__factor": 4.0}, (), "'yarn' without the length"),
        (
            {"scaling__type": "linear", "scaling__factor": 4.0, "scaling__attn_factor": 1.5},
            (),
            "'linear' with attn_factor",
        ),
        ({"scaling__type": "linear", "scaling__factor": 4.0}, ("rope_freqs.weight",), "and the scaling 'linear'"),
    ],
)
def test_what_a_config_cannot_state_is_refused(
    values: dict[str, Any], tensors: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    from transformers import LlamaConfig

    from luthier.ml.inference.models.gguf.rotary import restore_rotary

    config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    with pytest.raises(ModelSourceError, match=why):
        restore_rotary(config, _header(tmp_path / "f.gguf", "llama", tensors, **values))


def test_files_without_scaling_leave_the_config_alone(tmp_path: Path) -> None:
    from transformers import GPT2Config, LlamaConfig

    from luthier.ml.inference.models.gguf.rotary import restore_rotary

    config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    before = dict(config.rope_parameters)
    file = _header(
        tmp_path / "f.gguf",
        "llama",
        ("rope_freqs.weight",),  # all of them 1
        freq_base=10_000.0,
        dimension_count=16,
        scaling__factor=1.0,
    )
    restore_rotary(config, file)
    assert config.rope_parameters == before
    restore_rotary(GPT2Config(), file)
