"""Where adapters go, and how many parameters they make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.architectures import small
from transformers import AutoModelForCausalLM

from luthier.core.errors import RecipeError
from luthier.core.recipe import LayersRecipe
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning.adapter import outer_targets, refuse_rank, resolve_targets, targeted

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


def test_the_nearest_names_are_said(structure: Structure) -> None:
    with pytest.raises(RecipeError, match=r"'qproj' matches no linear layer of this model; nearest: q_proj"):
        resolve_targets(structure, "qproj")
    with pytest.raises(RecipeError, match=r"'atention' matches no linear layer of this model; nearest: attention"):
        resolve_targets(structure, ["q_proj", "atention"])


def test_groups_are_attention_and_mlp(structure: Structure) -> None:
    assert resolve_targets(structure, "attention") == ("k_proj", "o_proj", "q_proj", "v_proj")
    assert resolve_targets(structure, "mlp") == ("down_proj", "gate_proj", "up_proj")
    assert resolve_targets(structure, ["attention", "mlp"]) == ALL
    assert resolve_targets(structure, ["mlp", "q_proj"]) == ("down_proj", "gate_proj", "q_proj", "up_proj")


def test_patterns_match_whole_names(structure: Structure) -> None:
    assert resolve_targets(structure, r"re:.*\.(q|v)_proj") == ("q_proj", "v_proj")
    assert resolve_targets(structure, r"re:.*\.1\.mlp\..*") == (
        "model.layers.1.mlp.down_proj",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
    )
    with pytest.raises(RecipeError, match="matches no linear layer"):
        resolve_targets(structure, "re:q_proj")
    with pytest.raises(RecipeError, match=r"'re:\(' is not a pattern"):
        resolve_targets(structure, "re:(")


def test_layers_are_counted_from_either_end(structure: Structure) -> None:
    first = resolve_targets(structure, "q_proj", LayersRecipe(first=1))
    last = resolve_targets(structure, ["q_proj", "v_proj"], LayersRecipe(last=1))
    assert first == ("model.layers.0.self_attn.q_proj",)
    assert last == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    assert resolve_targets(structure, "q_proj", LayersRecipe(first=1, last=1)) == ("q_proj",), "both ends are all"
    with pytest.raises(RecipeError, match=r"method\.layers\.last is 3, but the model has 2 layers"):
        resolve_targets(structure, "q_proj", LayersRecipe(last=3))
    with pytest.raises(RecipeError, match=r"within method\.layers matches no linear layer"):
        resolve_targets(structure, "q_proj", LayersRecipe())


@pytest.mark.parametrize("asked", ["all-linear", "attention", r"re:.*\.1\..*_proj", ["o_proj", "self_attn.k_proj"],
                                   ["lm_head", "q_proj"]])  # fmt: skip
def test_resolved_targets_mean_to_peft_what_they_mean_to_us(
    structure: Structure, tiny_model: Path, asked: str | list[str]
) -> None:
    targets = resolve_targets(structure, asked, LayersRecipe(last=1))
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with quiet_peft():
        model = get_peft_model(base, LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM"))
    adapted = {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}
    assert adapted == {layer.name for layer in targeted(structure, targets)}


def test_embeddings_and_head_are_meant_by_name_or_pattern_only(structure: Structure) -> None:
    table, head = structure.outer_layers
    assert (table.name, table.num_inputs, table.num_outputs) == ("model.embed_tokens", 384, structure.hidden_size)
    assert (head.name, head.num_inputs, head.num_outputs) == ("lm_head", structure.hidden_size, 384)
    for group in ("all-linear", "attention", "mlp"):
        assert not outer_targets(structure, resolve_targets(structure, group))
    assert resolve_targets(structure, ["all-linear", "embed_tokens"]) == tuple(sorted((*ALL, "embed_tokens")))
    assert resolve_targets(structure, "re:.*(embed_tokens|lm_head)") == ("embed_tokens", "lm_head")
    both = resolve_targets(structure, ["lm_head", "q_proj"], LayersRecipe(first=1))
    assert both == ("lm_head", "model.layers.0.self_attn.q_proj"), "layers cut what lies in them"
    assert [layer.name for layer in outer_targets(structure, both)] == ["lm_head"]
    with pytest.raises(
        RecipeError, match=r"'embed_token' matches no linear layer of this model; nearest: embed_tokens"
    ):
        resolve_targets(structure, "embed_token")


def test_no_group_means_a_layer_that_computes_more_than_a_product() -> None:
    structure = structure_of(
        small("llama") | {"model_type": "deepseek_v4", "num_key_value_heads": 1, "q_lora_rank": 16, "head_dim": 16,
                          "moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2, "o_groups": 2,
                          "o_lora_rank": 8, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4,
                          "partial_rotary_factor": 0.5}
    )  # fmt: skip
    custom = {x.kind for x in structure.linear_layers if x.role == "custom"}
    assert custom == {"o_a_proj"}
    assert "o_b_proj" in resolve_targets(structure, "attention")
    assert "o_a_proj" not in resolve_targets(structure, "all-linear")
    with pytest.raises(RecipeError, match="o_a_proj, which computes more than a product") as refused:
        resolve_targets(structure, ["o_a_proj", "o_b_proj"])
    assert "o_a_proj" in refused.value.do


def test_a_head_that_scales_its_product_takes_no_adapter() -> None:
    structure = structure_of(small("llama") | {"model_type": "dory", "n_input_layers": 0, "n_output_layers": 1})
    assert {x.name: x.role for x in structure.outer_layers} == {"model.embed_tokens": "block", "lm_head": "custom"}
    with pytest.raises(RecipeError, match="lm_head, which computes more than a product"):
        resolve_targets(structure, ["all-linear", "lm_head"])


def test_a_rank_above_the_matrix_is_refused(structure: Structure) -> None:
    with pytest.raises(RecipeError, match=r"method\.rank is 99.*\n.*at most 16"):
        refuse_rank(targeted(structure, ALL), 99, "rank")


def test_structure_counts_tied_weights_once(structure: Structure, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert structure.num_parameters == sum(p.numel() for p in model.parameters())
    assert (structure.num_layers, structure.hidden_size, structure.vocabulary_size) == (2, 32, 384)


def test_a_number_in_a_list_is_no_kind() -> None:
    """PEFT would take `0` for the first block, too."""
    shape = structure_of(
        {
            "model_type": "gemma3n_text", "hidden_size": 32, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
            "intermediate_size": [64] * 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "vocab_size": 96, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        }
    )  # fmt: skip
    targets = resolve_targets(shape, "all-linear")
    assert "q_proj" in targets
    numbered = [layer.name for layer in shape.linear_layers if layer.kind.isdigit()]
    assert numbered
    assert set(numbered) <= set(targets)
    assert not any(target.isdigit() for target in targets)
