"""The matrices that PEFT chooses where a file of TRL names none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOSEN_BY_PEFT
from tests.features.recipes.imports.test_imports import made, refusals, trl
from tests.vacuous import nonempty

from luthier.features.recipes.imports.peft_targets import TARGETS

QUERIES_AND_VALUES = ["q_proj", "v_proj"]


def targets(tmp_path: Path, name: str, **more: Any) -> list[str]:
    found = made(tmp_path, trl(model_name_or_path=name, use_peft=True), trainer="sft", **more)
    chosen: list[str] = found.keys["method"]["targets"]
    return chosen


def test_the_table_is_that_of_peft() -> None:
    assert {kind: list(names) for kind, names in nonempty(TARGETS.items())} == {
        kind: list(CHOSEN_BY_PEFT[kind]) for kind in TARGETS
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen2-0.5B", QUERIES_AND_VALUES),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", QUERIES_AND_VALUES),
        ("Qwen/Qwen3-4B-Instruct-2507", QUERIES_AND_VALUES),
        ("meta-llama/Llama-2-7b-hf", QUERIES_AND_VALUES),
        ("meta-llama/Llama-3.2-1B-Instruct", QUERIES_AND_VALUES),
        ("HuggingFaceTB/SmolLM2-1.7B", QUERIES_AND_VALUES),
        ("EleutherAI/pythia-1b-deduped", ["query_key_value"]),
    ],
)
def test_a_model_of_a_known_family_gets_the_matrices_of_its_architecture(
    tmp_path: Path, name: str, expected: list[str]
) -> None:
    assert targets(tmp_path, name) == expected


@pytest.mark.parametrize(
    "name",
    ["org/base", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen3.5-4B",
     "meta-llama/Llama-3.2-11B-Vision-Instruct", "google/gemma-3-4b-it"],
)  # fmt: skip
def test_of_another_architecture_the_matrices_must_be_named(tmp_path: Path, name: str) -> None:
    document = trl(model_name_or_path=name, use_peft=True)
    assert "lora_target_modules" in refusals(tmp_path, document, trainer="sft")
    assert targets(tmp_path, name, overrides=["method.targets=[q_proj]"]) == ["q_proj"]


def test_the_architecture_of_a_folder_is_read_from_its_config(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "phi"}), encoding="utf-8")
    assert targets(tmp_path, "./base") == ["q_proj", "v_proj", "fc1", "fc2"]
    # The model that is trained decides, not the one that the file names.
    assert targets(tmp_path, "./base", overrides=["base_model=hub:Qwen/Qwen2-0.5B@main"]) == QUERIES_AND_VALUES
    assert targets(tmp_path, "./base", overrides=["base_model=qwen3-0.6b"]) == QUERIES_AND_VALUES
    document = trl(model_name_or_path="./base", use_peft=True)
    assert "lora_target" in refusals(tmp_path, document, trainer="sft", overrides=["base_model=qwen3-30b-a3b"])
    for text in ("[]", "no JSON", json.dumps({"model_type": "unheard_of"})):
        (folder / "config.json").write_text(text, encoding="utf-8")
        document = trl(model_name_or_path="./base", use_peft=True)
        assert "lora_target_modules" in refusals(tmp_path, document, trainer="sft")


def test_the_end_of_qwen_s_answers_is_that_of_its_chat_template(tmp_path: Path) -> None:
    given = trl(model_name_or_path="Qwen/Qwen2-0.5B", eos_token="<|im_end|>")
    assert made(tmp_path, given, trainer="sft").keys["data"]["template"] == "chat"
    for more in ({"eos_token": "</s>"}, {"dataset_text_field": "text"}, {"model_name_or_path": "org/base"}):
        assert "eos_token" in refusals(tmp_path, given | more, trainer="sft")
