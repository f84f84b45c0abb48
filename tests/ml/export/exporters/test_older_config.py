"""What transformers 4 and engines built on it read in an exported config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.ml.export.exporters.conftest import MakeSource, Write
from tests.vacuous import nonempty

from luthier.ml.export.exporters.older_config import write_older_names
from luthier.ml.inference.models.architecture import load_config
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.testing.tiny import make_tiny_model

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 64,
    "intermediate_size": 64, "max_position_embeddings": 131_072,
}  # fmt: skip
_LLAMA_3 = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
# As models are published that were saved by transformers 4.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 500_000.0, "rope_scaling": _LLAMA_3},
    "qwen2": {
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32_768, "type": "yarn"},
    },
    "qwen3": {"rope_theta": 1_000_000.0, "rope_scaling": None},
    "phi": {"rope_theta": 20_000.0, "partial_rotary_factor": 0.25},
    "gpt_neox": {"rotary_emb_base": 20_000, "rotary_pct": 0.5},
    "gemma3_text": {
        "rope_theta": 2_000_000.0,
        "rope_local_base_freq": 20_000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
}


def _saved(folder: Path, kind: str) -> tuple[Path, Path]:
    """A published config, and the same as this transformers saves it."""
    base, made = folder / "base", folder / "made"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": kind, **_SIZES, **_PUBLISHED[kind]}))
    with quiet_transformers():
        load_config(base).save_pretrained(made)
    return base, made


def _read(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("kind", _PUBLISHED)
def test_the_entries_of_the_published_config_are_there_again(kind: str, tmp_path: Path) -> None:
    base, made = _saved(tmp_path, kind)
    write_older_names(made, base)
    found = _read(made)
    assert {name: found.get(name) for name in nonempty(_PUBLISHED[kind])} == _PUBLISHED[kind]
    assert load_config(made).rope_parameters == load_config(base).rope_parameters


def test_a_model_that_this_transformers_has_saved_gets_them_from_what_it_says_now(tmp_path: Path) -> None:
    _, made = _saved(tmp_path, "llama")
    before = load_config(made).rope_parameters
    # As after a full fine-tuning: the base of the export is what the run has saved.
    shutil.copytree(made, tmp_path / "outcome")
    write_older_names(made, tmp_path / "outcome")
    found = _read(made)
    assert found["rope_theta"] == 500_000.0
    assert found["rope_scaling"] == _LLAMA_3
    assert load_config(made).rope_parameters == before


def test_kinds_of_layers_have_the_two_bases_of_version_4(tmp_path: Path) -> None:
    _, made = _saved(tmp_path, "gemma3_text")
    shutil.copytree(made, tmp_path / "outcome")
    write_older_names(made, tmp_path / "outcome")
    found = _read(made)
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (2_000_000.0, 20_000.0)
    assert found["rope_scaling"] == {"factor": 8.0, "rope_type": "linear"}
    assert load_config(made).rope_parameters == load_config(tmp_path / "base").rope_parameters


def test_the_language_model_of_another_takes_the_entries_of_its_part(tmp_path: Path) -> None:
    base, made = _saved(tmp_path, "gemma3_text")
    inner = _read(base)
    (base / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": inner}))
    write_older_names(made, base)
    found = _read(made)
    assert {name: found[name] for name in _PUBLISHED["gemma3_text"]} == _PUBLISHED["gemma3_text"]


@pytest.mark.parametrize(("to", "precision"), [("merged", "bfloat16"), ("vllm", "float16"), ("vllm", "w4a16")])
def test_whole_models_are_exported_with_them(
    to: str, precision: str, write: Write, make_source: MakeSource, tmp_path: Path
) -> None:
    base = make_tiny_model(tmp_path / "model", hidden=64)
    published = {name: value for name, value in _read(base).items() if name != "rope_parameters"}
    (base / "config.json").write_text(json.dumps(published | _PUBLISHED["llama"] | {"torch_dtype": "float32"}))
    folder, _ = write(to, precision, make_source(base_path=str(base), adapter_path=None))
    found = _read(folder)
    assert (found["rope_theta"], found["rope_scaling"]) == (500_000.0, _LLAMA_3)
    assert found["torch_dtype"] == found["dtype"] == ("bfloat16" if precision == "w4a16" else precision)
    assert load_config(folder).rope_parameters == load_config(base).rope_parameters
