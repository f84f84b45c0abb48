"""A real run becomes files for other runtimes, each of which answers there as the run does here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.records.base_model import LocalModel

pytestmark = pytest.mark.e2e

Luthier = Callable[..., Any]
WOODS = ("spruce", "maple", "ebony", "cedar", "willow", "rosewood", "pine", "ash")


def _rows(file: Path, places: range) -> None:
    rows = [
        {"prompt": f"Which wood is part {n} of the lute?", "completion": f"Part {n} is {WOODS[n % len(WOODS)]}."}
        for n in places
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def run_id(model: LocalModel, luthier: Luthier, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of a few steps over SmolLM2, which is not evaluated."""
    folder = tmp_path_factory.mktemp("recipe")
    _rows(folder / "train.jsonl", range(32))
    recipe = {
        "base_model": model.name,
        "data": {"train": "train.jsonl"},
        "method": {"name": "lora", "rank": 8, "dropout": 0.0},
        # Whatever this machine is faster in: how wide an export is follows from it.
        "training": {"max_steps": 4, "global_batch_size": 8, "learning_rate": 1e-3, "precision": "bfloat16"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(luthier("train", folder / "recipe.yaml")["run_id"])


@pytest.fixture(scope="module")
def rows_of_proof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows that the run has not seen."""
    file = tmp_path_factory.mktemp("proof") / "test.jsonl"
    _rows(file, range(100, 102))
    return file


def test_a_run_is_merged_and_proved(
    luthier: Luthier, luthier_here: Luthier, run_id: str, rows_of_proof: Path, tmp_path: Path
) -> None:
    made = luthier("export", run_id, "--to", "merged", "--data", rows_of_proof, "-o", tmp_path / "merged")
    assert (made["precision"], made["parity"]["passed"], made["parity"]["num_prompts"]) == ("float16", True, 2)
    assert luthier_here("verify", tmp_path / "merged")["is_whole"]


@pytest.mark.parametrize("precision", ["float16", pytest.param("q4_k_m", marks=pytest.mark.drill)])
def test_it_answers_in_llama_cpp(
    luthier: Luthier, run_id: str, rows_of_proof: Path, tmp_path: Path, precision: str
) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    options = ("--quantise", precision, "--data", rows_of_proof)
    made = luthier("export", run_id, "--to", "gguf", *options, "-o", tmp_path / "gguf")
    assert made["parity"]["passed"]
    assert made["parity"]["num_prompts_same_tokens"] == 2
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(tmp_path / "gguf" / "model.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 512, 1, False
    server = xllamacpp.Server(parameters)
    said: list[str] = []
    messages = [{"role": "user", "content": "Which wood is part 7 of the lute?"}]
    asked = {"messages": messages, "max_tokens": 16, "temperature": 0}
    server.handle_chat_completions(json.dumps(asked), lambda chunk: said.append(chunk) is not None)
    choice = json.loads(said[0])["choices"][0]
    assert choice["finish_reason"] == "stop"  # the token that ends a turn has come along
    assert choice["message"]["content"].startswith("Part 7 is")
