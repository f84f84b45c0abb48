"""A folder of AWQ or GPTQ named to commands: refused by its format with what to do, before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

_FORMATS = {
    "AWQ": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "GPTQ": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
}


@pytest.mark.parametrize("name", _FORMATS)
def test_training_evaluation_and_export_refuse_it_with_what_to_do(
    name: str, luthier: Any, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "quantised"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": _FORMATS[name]}), encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 20, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base_model: {folder}\ndata: {{train: {rows}}}\n", encoding="utf-8")
    for command in (
        ("plan", str(recipe)),
        ("train", str(recipe)),
        ("eval", str(folder), "--data", str(rows)),
        ("export", str(folder), "--to", "gguf", "-o", str(tmp_path / "out")),
        ("models", "pull", str(folder)),
    ):
        done = luthier(*command)
        assert done.code == 1, command
        assert f"holds weights that are quantised already ({name}, 4 bits in groups of 128)" in done.err, command
        assert "name the same model in 16 bits" in done.err, command
        assert "luthier serve FOLDER --engine vllm" in done.err, command
    assert not (tmp_path / "out").exists()
