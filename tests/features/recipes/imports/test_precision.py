"""Optimizers and products of matrices in fewer bits than here: taken over, and a note says what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.features.recipes.imports.test_axolotl_model import outcomes
from tests.features.recipes.imports.test_imports import axolotl, made, trl

from luthier.core.errors import RequestError

LLAMA_FACTORY = {"model_name_or_path": "org/base", "dataset": "rows", "template": "qwen", "finetuning_type": "full"}
ROWS = ("data.train=rows.jsonl",)


@pytest.mark.parametrize(
    ("document", "key", "tool"),
    [
        (axolotl(optimizer="adamw_torch_4bit"), "optimizer", {}),
        (trl(optim="adamw_torch_4bit"), "optim", {"trainer": "sft"}),
        (LLAMA_FACTORY | {"optim": "adamw_torch_4bit"}, "optim", {"overrides": ROWS}),
    ],
    ids=["axolotl", "trl", "llama_factory"],
)
def test_the_state_of_adamw_in_4_bits_has_8_and_a_note_says_so(
    tmp_path: Path, document: dict[str, Any], key: str, tool: dict[str, Any]
) -> None:
    found = made(tmp_path, document, **tool)
    assert found.keys["training"]["optimizer"]["name"] == "adamw_8bit"
    assert [note for note in found.notes if note.startswith(f"{key}:") and "8 bits here and 4 there" in note]
    chosen = [*tool.get("overrides", ()), "training.optimizer.name=adamw"]
    other = made(tmp_path, document, **{**tool, "overrides": chosen})
    assert other.keys["training"]["optimizer"]["name"] == "adamw"
    assert not [note for note in other.notes if "4 there" in note]
    eight = made(tmp_path, document | {key: "adamw_torch_8bit"}, **tool)
    assert eight.keys["training"]["optimizer"]["name"] == "adamw_8bit"
    assert not [note for note in eight.notes if "4 there" in note]


@pytest.mark.parametrize(
    ("document", "tool"),
    [(axolotl(bf16="auto"), {}), (LLAMA_FACTORY, {"overrides": ROWS})],
    ids=["axolotl", "llama_factory"],
)
def test_products_in_8_bits_are_computed_in_bfloat16_and_a_note_says_so(
    tmp_path: Path, document: dict[str, Any], tool: dict[str, Any]
) -> None:
    given = document | {"fp8": True, "fp8_enable_fsdp_float8_all_gather": True}
    found = made(tmp_path, given, **tool)
    assert found.keys["training"]["precision"] == "bfloat16"
    assert {outcomes(found)[key] for key in ("fp8",)} == {"translated"}
    assert outcomes(found)["fp8_enable_fsdp_float8_all_gather"] == "harmless"
    assert [note for note in found.notes if note.startswith("fp8:")]
    off = made(tmp_path, given | {"fp8": False}, **tool)
    assert outcomes(off)["fp8"] == "harmless"
    assert off.keys["training"].get("precision") == made(tmp_path, document, **tool).keys["training"].get("precision")
    assert not [note for note in off.notes if note.startswith("fp8:")]


def test_arguments_of_unsloth_without_sections_are_those_of_its_calls(tmp_path: Path) -> None:
    flat = {
        "model_name": "org/base", "max_seq_length": 512, "load_in_4bit": True, "r": 8, "lora_alpha": 32,
        "random_state": 7, "use_gradient_checkpointing": "unsloth", "dataset": "rows.jsonl", "packing": False,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 60, "learning_rate": "2e-4",
        "instruction_part": "<|user|>", "response_part": "<|assistant|>",
    }  # fmt: skip
    sections = {
        "from_pretrained": {name: flat[name] for name in ("model_name", "max_seq_length", "load_in_4bit")},
        "get_peft_model": {
            name: flat[name] for name in ("r", "lora_alpha", "random_state", "use_gradient_checkpointing")
        },
        "load_dataset": {"path": "rows.jsonl"},
        "SFTConfig": {
            name: flat[name]
            for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "learning_rate")
        },
        "train_on_responses_only": {name: flat[name] for name in ("instruction_part", "response_part")},
    }
    found = made(tmp_path, flat)
    assert found.tool == "unsloth"
    assert found.keys == made(tmp_path, sections).keys
    assert found.keys["training"]["seed"] == 7
    with pytest.raises(RequestError, match="colour"):
        made(tmp_path, flat | {"colour": "red"})
