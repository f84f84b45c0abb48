"""axolotl's keys of the base model, its tokenizer and its devices: what leaves training as it is, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.features.recipes.imports.test_imports import axolotl, made, refusals
from tests.vacuous import nonempty

from luthier.features.recipes.imports.service import Imported

LLAMA_2 = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
QLORA = {"adapter": "qlora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
CHAT = [{"path": "rows.jsonl", "type": "chat_template"}]


def outcomes(found: Imported) -> dict[str, str]:
    return {entry.key: entry.outcome for entry in nonempty(found.entries)}


def model_folder(tmp_path: Path, tokenizer: Any) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def test_the_tokens_of_a_well_known_tokenizer_are_its_own(tmp_path: Path) -> None:
    for name in ("codellama/CodeLlama-7b-hf", "NousResearch/Llama-2-7b-hf", "openlm-research/open_llama_3b_v2"):
        found = made(tmp_path, axolotl(base_model=name, special_tokens=LLAMA_2))
        assert {outcomes(found)[f"special_tokens.{role}"] for role in LLAMA_2} == {"harmless"}
        came = refusals(tmp_path, axolotl(base_model=name, special_tokens={"eos_token": "<|im_end|>"}))
        assert "the tokenizer's own is </s>" in came
    came = refusals(tmp_path, axolotl(base_model="org/other", special_tokens=LLAMA_2))
    assert came.count("is not known here") == len(LLAMA_2)


def test_the_tokens_of_a_model_in_a_folder_are_read_from_it(tmp_path: Path) -> None:
    model_folder(tmp_path, {"eos_token": {"content": "</s>", "lstrip": False}, "bos_token": "<s>", "unk_token": None})
    given = {"base_model": "./base", "special_tokens": {"eos_token": "</s>", "bos_token": "<s>"}}
    found = made(tmp_path, axolotl(**given))
    assert {outcomes(found)[f"special_tokens.{role}"] for role in ("eos_token", "bos_token")} == {"harmless"}
    assert "unk_token" in refusals(tmp_path, axolotl(base_model="./base", special_tokens={"unk_token": "<unk>"}))
    # Another model is trained than the one that the file names, so that its tokens say nothing.
    assert "eos_token" in refusals(tmp_path, axolotl(**given), overrides=["base_model=org/other"])


@pytest.mark.parametrize("tokenizer", [[], "text", {"eos_token": 3}])
def test_a_tokenizer_whose_file_says_nothing_has_no_known_tokens(tmp_path: Path, tokenizer: Any) -> None:
    model_folder(tmp_path, tokenizer)
    assert "eos_token" in refusals(tmp_path, axolotl(base_model="./base", special_tokens={"eos_token": "</s>"}))


def test_the_end_that_a_chat_template_writes_needs_no_other_token(tmp_path: Path) -> None:
    given = axolotl(datasets=CHAT, chat_template="llama3", special_tokens={"eos_token": "<|eot_id|>"})
    found = made(tmp_path, given)
    assert outcomes(found)["special_tokens.eos_token"] == "harmless"
    assert found.keys["data"]["template"] == "chat"
    own = [{**CHAT[0], "chat_template": "qwen3"}]
    assert made(tmp_path, axolotl(datasets=own, special_tokens={"eos_token": "<|im_end|>"}))
    # Another token, a template that writes whatever the tokenizer's own is, and rows without a template.
    for more in (
        {"datasets": CHAT, "chat_template": "llama3", "special_tokens": {"eos_token": "<|im_end|>"}},
        {"datasets": CHAT, "chat_template": "mistral_v1", "special_tokens": {"eos_token": "<|eot_id|>"}},
        {"datasets": [{"path": "rows.jsonl", "type": "completion"}], "chat_template": "llama3",
         "special_tokens": {"eos_token": "<|eot_id|>"}},
    ):  # fmt: skip
        assert "special_tokens.eos_token" in refusals(tmp_path, axolotl(**more))
    assert "bos_token" in refusals(tmp_path, given | {"special_tokens": {"bos_token": "<|eot_id|>"}})


def test_experts_that_axolotl_quantises_keep_their_bits_and_a_note_says_so(tmp_path: Path) -> None:
    found = made(tmp_path, axolotl(**QLORA, quantize_moe_experts=True))
    assert outcomes(found)["quantize_moe_experts"] == "translated"
    assert found.keys["method"]["quantisation"] == "nf4"
    assert any("quantize_moe_experts" in note and "16 bits" in note for note in found.notes)
    assert "quantize_moe_experts" in refusals(tmp_path, axolotl(quantize_moe_experts=True))
    assert outcomes(made(tmp_path, axolotl(quantize_moe_experts=False)))["quantize_moe_experts"] == "harmless"


def test_weights_that_are_dequantised_are_those_of_16_bits(tmp_path: Path) -> None:
    kinds = ("Mxfp4Config", "FineGrainedFP8Config")
    for kind in kinds:
        given = axolotl(model_quantization_config=kind, model_quantization_config_kwargs={"dequantize": True})
        assert outcomes(made(tmp_path, given))["model_quantization_config"] == "harmless"
        assert "model_quantization_config" in refusals(tmp_path, axolotl(model_quantization_config=kind))


@pytest.mark.parametrize(
    "more",
    [
        {"resize_token_embeddings_to_32x": True},
        {"model_config": {"output_router_logits": True}},
        {"eta_min": 7e-7},
        {"pretrain_multipack_attn": True},
        {**QLORA, "lora_fan_in_fan_out": True},
        {**QLORA, "bnb_config_kwargs": {"bnb_4bit_use_double_quant": True}},
        {"unfrozen_parameters": ["^model.language_model.*", "^lm_head.*"]},
        {"unfrozen_parameters": ["model.language_model.*", "lm_head", "embed_tokens"]},
    ],
)
def test_a_key_that_leaves_training_as_it_is_leaves_the_recipe_as_it_is(tmp_path: Path, more: dict[str, Any]) -> None:
    rest = {key: value for key, value in more.items() if key in QLORA}
    plain = made(tmp_path, axolotl(**rest))
    found = made(tmp_path, axolotl(**more))
    assert found.keys == plain.keys
    (key,) = nonempty(more.keys() - rest.keys())
    assert {outcome for name, outcome in outcomes(found).items() if name.startswith(key)} == {"harmless"}


@pytest.mark.parametrize(
    "more",
    [
        {"unfrozen_parameters": ["model.layers.2[0-9]+.mlp"]},
        {"unfrozen_parameters": ["model.language_model.*"]},
        {"unfrozen_parameters": ["model.language_model.*", "lm_head", "visual"]},
        {**QLORA, "unfrozen_parameters": ["^model.language_model.*", "^lm_head.*"]},
        {**QLORA, "bnb_config_kwargs": {"bnb_4bit_quant_type": "fp4"}},
        {**QLORA, "peft": {"loftq_config": {"loftq_bits": 4}}},
        {"overrides_of_model_config": {"output_router_logits": True}},
        {"shrink_embeddings": True},
        {"llama4_linearized_experts": True},
        {"lisa_n_layers": 4},
        {"ebft": {"mode": "structured"}},
        {"pretrain_multipack_attn": False},
        {"tokens": ["<|im_start|>"]},
    ],
)
def test_a_key_that_changes_training_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    (key,) = nonempty(more.keys() - QLORA.keys())
    assert key in refusals(tmp_path, axolotl(**more))


def test_the_model_s_own_template_takes_the_place_of_mistral_common_and_a_note_says_so(tmp_path: Path) -> None:
    given = axolotl(datasets=CHAT, tokenizer_use_mistral_common=True)
    found = made(tmp_path, given)
    assert outcomes(found)["tokenizer_use_mistral_common"] == "translated"
    assert found.keys["data"]["template"] == "chat"
    assert any("mistral-common writes" in note and "system message" in note for note in found.notes)
    chosen = made(tmp_path, given, overrides=["data.template=plain"])
    assert outcomes(chosen)["tokenizer_use_mistral_common"] == "set"
    assert chosen.keys["data"]["template"] == "plain"
    assert not any("mistral-common" in note for note in chosen.notes)
    plain = made(tmp_path, axolotl(datasets=[CHAT[0] | {"type": "completion"}], tokenizer_use_mistral_common=True))
    assert outcomes(plain)["tokenizer_use_mistral_common"] == "harmless"
    assert plain.keys["data"]["template"] == "plain"


def test_adapters_on_experts_need_their_targets(tmp_path: Path) -> None:
    given = axolotl(**QLORA, lora_target_parameters=["mlp.experts.gate_up_proj"])
    came = refusals(tmp_path, given)
    assert "a rank of their own" in came
    assert "--set method.targets=" in came
    found = made(tmp_path, given, overrides=["method.targets=[q_proj, experts]"])
    assert found.keys["method"]["targets"] == ["q_proj", "experts"]
    assert outcomes(found)["lora_target_parameters"] == "set"
    assert outcomes(made(tmp_path, given | {"lora_target_parameters": []}))["lora_target_parameters"] == "harmless"


def test_devices_that_share_rows_are_one_factor_of_the_batch(tmp_path: Path) -> None:
    given = axolotl(micro_batch_size=2, gradient_accumulation_steps=3, tensor_parallel_size=2, context_parallel_size=2)

    def size(document: dict[str, Any], devices: int) -> int:
        batch: int = made(tmp_path, document, num_devices=devices).keys["training"]["global_batch_size"]
        return batch

    assert [size(given, devices) for devices in (1, 4, 8)] == [6, 6, 12]
    older = axolotl(micro_batch_size=2, sequence_parallel_degree=4)
    assert size(older, 8) == 4
    assert size(older | {"context_parallel_size": 2}, 8) == 8
    assert "a copy of the model takes 4" in refusals(tmp_path, given, num_devices=6)
    assert made(tmp_path, given, num_devices=6, overrides=["training.global_batch_size=6"])
    assert size(axolotl(micro_batch_size=2, tensor_parallel_size=1), 8) == 16


@pytest.mark.parametrize("name", ["org/Llama-4-Scout-Linearized-BNB-NF4-BF16", "org/Qwen3-NVFP4", "org/base-bnb-4bit"])
def test_a_base_that_is_stored_in_fewer_bits_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    assert "quantised already" in refusals(tmp_path, axolotl(base_model=name))
