"""Where adapters go, and how many parameters they make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from luthier.core.errors import RecipeError
from luthier.models.structure import Structure
from luthier.plan.adapter import num_lora_parameters, resolve_targets

ALL = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


def test_all_linear_leaves_the_head_out(structure: Structure) -> None:
    assert resolve_targets(structure, "all-linear") == ALL


def test_names_are_sorted_and_deduplicated(structure: Structure) -> None:
    assert resolve_targets(structure, ["v_proj", "q_proj", "v_proj"]) == ("q_proj", "v_proj")
    assert resolve_targets(structure, "o_proj") == ("o_proj",)


@pytest.mark.parametrize("asked", ["qproj", ["q_proj", "query"], []])
def test_what_matches_nothing_is_refused_with_the_names_there_are(structure: Structure, asked: str | list[str]) -> None:
    with pytest.raises(RecipeError, match=r"matches no linear layer[\s\S]*q_proj"):
        resolve_targets(structure, asked)


@pytest.mark.parametrize("targets", [ALL, ("q_proj", "down_proj")])
def test_the_count_is_that_of_peft(structure: Structure, tiny_model: Path, targets: tuple[str, ...]) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert num_lora_parameters(structure, targets, 4) == trained


def test_a_rank_above_the_matrix_is_refused(structure: Structure) -> None:
    with pytest.raises(RecipeError, match=r"method\.rank is 99.*\n.*at most 16"):
        num_lora_parameters(structure, ALL, 99)


def test_structure_counts_tied_weights_once(structure: Structure, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert structure.num_parameters == sum(p.numel() for p in model.parameters())
    assert (structure.num_layers, structure.hidden_size, structure.vocabulary_size) == (2, 32, 384)
