"""Unsloth: the arguments of a notebook's calls as YAML, a section for each call.

    from_pretrained: {model_name: ..., max_seq_length: 2048, load_in_4bit: true}
    get_peft_model: {r: 16, lora_alpha: 16}
    load_dataset: {path: train.jsonl}
    SFTTrainer: {dataset_text_field: text, packing: false}
    SFTConfig: {per_device_train_batch_size: 2, gradient_accumulation_steps: 4, max_steps: 60}
    train_on_responses_only: {instruction_part: ..., response_part: ...}

A file without sections has the arguments of all calls side by side, as those of unsloth-cli.py; `dataset` names the
rows.

Keys and defaults are those of Unsloth 2026.8.19.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from luthier.features.recipes.imports import hf_arguments
from luthier.features.recipes.imports.hf_arguments import Defaults, Packing, put_training
from luthier.features.recipes.imports.methods import AdapterKeys, put_adapter, put_name
from luthier.features.recipes.imports.translation import HubParts, Key, Translation, becomes, harmless, missing

VERSION: Final = "Unsloth 2026.8.19"
SECTIONS: Final = (
    "from_pretrained", "get_peft_model", "load_dataset", "SFTTrainer", "SFTConfig", "train_on_responses_only",
)  # fmt: skip
_HUB_PARTS: Final = HubParts("load_dataset.name", "load_dataset.split", "load_dataset.revision")
_TARGETS: Final = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _of(section: str, keys: dict[str, Key]) -> dict[str, Key]:
    return {f"{section}.{name}": key for name, key in keys.items()}


_MACHINE: Final = "the machine, not what is trained"
KEYS: Final[dict[str, Key]] = {
    **_of("from_pretrained", {
        "model_name": becomes("base_model", note="org/name: hub:org/name; weights of 4 bits are refused"),
        "revision": becomes("base_model", note="hub:org/name@revision"),
        "max_seq_length": becomes("training.max_length_tokens", "training.on_overlong", note="longer rows are cut"),
        "load_in_4bit": becomes("method.name", "method.quantisation", note="qlora, nf4"),
        "load_in_8bit": becomes("method.name", "method.quantisation", note="qlora, int8"),
        "load_in_16bit": becomes("method.name", note="lora"),
        "full_finetuning": becomes("method.name", note="full"),
        **harmless(_MACHINE, "dtype", "device_map", "fast_inference", "gpu_memory_utilization", "float8_kv_cache",
                   "max_lora_rank", "disable_log_stats", "use_gradient_checkpointing", "offload_embedding",
                   "unsloth_tiled_mlp", "fix_tokenizer", "random_state", "use_exact_model_name",
                   "attn_implementation", "float32_mixed_precision"),
        **harmless("a key of the hub, which Luthier reads from the environment", "token"),
        **harmless("code of a model is never run: a model that needs it is refused by `luthier plan`",
                   "trust_remote_code"),
        **missing("another position encoding", "rope_scaling", off=({},)),
        **missing("tokens in addition to the tokenizer's own", "resize_model_vocab", off=(0,)),
        **missing("a training with quantised weights (QAT, FP8)", "qat_scheme", "load_in_fp8"),
    }),
    **_of("get_peft_model", {
        "r": becomes("method.rank"),
        "lora_alpha": becomes("method.alpha"),
        "lora_dropout": becomes("method.dropout"),
        "target_modules": becomes("method.targets"),
        "modules_to_save": becomes("method.modules_to_save", note="embeddings and head"),
        "use_rslora": becomes("method.name", note="rslora"),
        "use_dora": becomes("method.name", note="dora"),
        "init_lora_weights": becomes("method.name", note="pissa, olora; true: lora"),
        "use_gradient_checkpointing": becomes("training.gradient_checkpointing", note="\"unsloth\": true"),
        "random_state": becomes("training.seed", note="where SFTConfig has no seed"),
        **harmless("no longer used by Unsloth", "max_seq_length", "temporary_location"),
        **missing("biases are not trained", "bias", off=("none",)),
        **missing("adapters on some layers alone; see method.layers", "layers_to_transform", "layers_pattern",
                  "finetune_last_n_layers", "target_parameters", off=([],)),
        **missing("LoftQ, or a training with quantised weights", "loftq_config", "qat_scheme", off=({},)),
        **missing("embeddings and head as one", "ensure_weight_tying"),
    }),
    **_of("load_dataset", {
        "path": becomes("data.train", note="a file; org/name: hub:org/name"),
        "data_files": becomes("data.train", note="files, where path is json, csv or parquet; else those of path"),
        "name": becomes("data.train", note="hub:org/name/config"),
        "split": becomes("data.train", note="hub:org/name[split]; train[:1000], train[:10%]: rows, fraction"),
        "revision": becomes("data.train", note="hub:org/name@revision"),
    }),
    **_of("SFTTrainer", {
        "dataset_text_field": becomes("data.columns", note="the column of plain texts, unless answers alone are "
                                      "learned"),
        "max_seq_length": becomes("training.max_length_tokens", note="takes precedence"),
        "packing": becomes("training.global_batch_tokens", note=hf_arguments.PACKING_NOTE),
        **harmless(_MACHINE, "dataset_num_proc"),
    }),
    **_of("SFTConfig", {
        **hf_arguments.KEYS,
        "dataset_text_field": becomes("data.columns", note="the column of plain texts, unless answers alone are "
                                      "learned"),
        "max_length": becomes("training.max_length_tokens", note="takes precedence"),
        "max_seq_length": becomes("training.max_length_tokens", note="takes precedence"),
        "packing": becomes("training.global_batch_tokens", note=hf_arguments.PACKING_NOTE),
        "completion_only_loss": becomes("objective.name", note="true; false is refused"),
        "assistant_only_loss": becomes("objective.name", note="true; false is refused"),
        **harmless(_MACHINE, "dataset_num_proc"),
        **missing("arguments of how rows are read", "dataset_kwargs", off=({}, {"skip_prepare_dataset": True})),
    }),
    **_of("train_on_responses_only", {
        "instruction_part": becomes("data.template", note="answers are found by the chat template"),
        "response_part": becomes("data.template", note="answers are found by the chat template"),
        **missing("only the last answer is learned: give earlier ones `weight: 0`", "last_response_only"),
        **harmless(_MACHINE, "num_proc"),
    }),
}  # fmt: skip

_SIGNS: Final = frozenset(("max_seq_length", "load_in_4bit", "load_in_8bit", "load_in_16bit", "full_finetuning"))
"""Arguments of `from_pretrained`, one of them beside `model_name`, in a file without sections."""
_FLAT_ORDER: Final = (
    "from_pretrained", "get_peft_model", "SFTConfig", "SFTTrainer", "train_on_responses_only", "load_dataset",
)  # fmt: skip
"""The calls that an argument may be of, where a file has no sections."""
_FLAT_NAMES: Final = {"dataset": ("load_dataset", "path")}
"""Names of unsloth-cli.py that are not those of the call."""
_SWITCHES: Final = (
    "from_pretrained.load_in_4bit", "from_pretrained.load_in_8bit", "from_pretrained.load_in_16bit",
    "get_peft_model.use_rslora", "get_peft_model.use_dora", "get_peft_model.init_lora_weights",
)  # fmt: skip
_ADAPTER: Final = AdapterKeys(
    _SWITCHES, "get_peft_model.r", "get_peft_model.lora_alpha", "get_peft_model.lora_dropout",
    "get_peft_model.target_modules", 16, 16, 0.0, _TARGETS, "get_peft_model.modules_to_save",
    ("embed_tokens", "lm_head"),
)  # fmt: skip


def prepared(given: dict[str, Any]) -> dict[str, Any]:
    """The sections, with `FastLanguageModel.` before a call and the arguments inside SFTTrainer taken out."""
    found = {key.removeprefix("FastLanguageModel."): value for key, value in given.items()}
    if is_flat(found):
        found = _in_sections(found)
    trainer = found.get("SFTTrainer")
    if isinstance(trainer, dict) and isinstance(trainer.get("args"), dict):
        found["SFTConfig"] = {**found.get("SFTConfig", {}), **trainer["args"]}
        found["SFTTrainer"] = {key: value for key, value in trainer.items() if key != "args"}
    return found


def is_flat(given: Mapping[str, Any]) -> bool:
    """Whether a file has the arguments of all calls side by side, without a section for each call.

    Args:
        given: The keys of a file.
    """
    return "model_name" in given and not _SIGNS.isdisjoint(given) and given.keys().isdisjoint(SECTIONS)


def _in_sections(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments side by side, each in the section of the call that takes it; unknown ones stay where they are."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        section, key = _FLAT_NAMES.get(name, ("", name))
        if not section:
            places = [one for one in _FLAT_ORDER if f"{one}.{name}" in KEYS]
            section = min(places, key=lambda one: KEYS[f"{one}.{name}"].kind == "harmless", default="")
        if section:
            found.setdefault(section, {})[key] = value
        else:
            found[name] = value
    return found


def translate(t: Translation) -> None:
    """Translate a notebook's arguments."""
    t.put_model(t.take("from_pretrained.model_name", ""), "from_pretrained.model_name", "from_pretrained.revision")
    t.recipe["objective.name"] = "sft"
    _put_data(t)
    _put_method(t)
    longest = _put_length(t)
    packed = [key for key in ("SFTTrainer.packing", "SFTConfig.packing") if t.take(key, False)]
    for key in ("SFTTrainer.packing", "SFTConfig.packing"):
        if key not in packed[:1]:
            t.same(key, "as the other" if packed else "off")
    seed = t.take("get_peft_model.random_state", 3407)
    defaults = Defaults(learning_rate=5e-5, num_rows=4, accumulation=2, warmup=0.1, optimizer="adamw_8bit",
                        weight_decay=0.001, seed=3407)  # fmt: skip
    put_training(t, defaults, prefix="SFTConfig.", packing=Packing(packed[0], longest) if packed else None)
    if t.has("SFTConfig.seed"):
        t.same("get_peft_model.random_state", "a recipe has one seed, that of SFTConfig")
    else:
        t.put("training.seed", seed, "get_peft_model.random_state", default=3407)
    if (value := t.take("get_peft_model.use_gradient_checkpointing")) is not None:
        t.put("training.gradient_checkpointing", bool(value), "get_peft_model.use_gradient_checkpointing")


def _put_data(t: Translation) -> None:
    t.put_loaded("data.train", "load_dataset.path", "load_dataset.data_files", _HUB_PARTS)
    parts = ["train_on_responses_only.instruction_part", "train_on_responses_only.response_part"]
    is_answers = any(t.take(key) is not None for key in parts)
    for key in ("SFTTrainer.dataset_text_field", "SFTConfig.dataset_text_field"):
        field = t.take(key)
        if field is None:
            continue
        if is_answers:
            note = "the column contains conversations written as text: give the rows themselves, such as messages"
            t.refuse(key, note, set_by="data.train")
        else:
            t.put("data.columns", {"text": field}, key)
            t.put("data.template", "plain", key)
    if is_answers:
        t.put("data.template", "chat", *[key for key in parts if t.has(key)], note="answers alone are learned")
    for key in ("SFTConfig.completion_only_loss", "SFTConfig.assistant_only_loss"):
        if (value := t.take(key)) is False:
            t.refuse(key, "prompts are never learned here; for plain texts use a column text")
        elif value:
            t.put("objective.name", "sft", key, note="answers alone are learned")


def _put_method(t: Translation) -> None:
    is_full = t.take("from_pretrained.full_finetuning", False)
    is_8bit, is_16bit = t.take("from_pretrained.load_in_8bit", False), t.take("from_pretrained.load_in_16bit", False)
    is_4bit = t.take("from_pretrained.load_in_4bit", not (is_8bit or is_16bit or is_full))
    start = t.take("get_peft_model.init_lora_weights", True)
    variants = {
        "rslora": bool(t.take("get_peft_model.use_rslora", False)),
        "dora": bool(t.take("get_peft_model.use_dora", False)),
        "pissa": start == "pissa",
        "olora": start == "olora",
    }
    if is_full:
        t.put("method.name", "full", "from_pretrained.full_finetuning")
        for key in (*_SWITCHES, _ADAPTER.rank, _ADAPTER.alpha, _ADAPTER.dropout, _ADAPTER.targets,
                    _ADAPTER.modules_to_save):  # fmt: skip
            t.same(key, "no adapter is trained")
        return
    t.same("from_pretrained.full_finetuning", "off")
    if start not in (True, "pissa", "olora"):
        t.refuse("get_peft_model.init_lora_weights", "known here: true, pissa, olora")
    put_name(t, _SWITCHES, is_4bit=bool(is_4bit) and not is_8bit, is_8bit=bool(is_8bit), variants=variants,
             default="4 bits")  # fmt: skip
    put_adapter(t, _ADAPTER)


def _put_length(t: Translation) -> int:
    """Returns the tokens of the longest row."""
    keys = ("SFTConfig.max_length", "SFTConfig.max_seq_length", "SFTTrainer.max_seq_length",
            "from_pretrained.max_seq_length")  # fmt: skip
    values = [(key, t.take(key)) for key in keys if t.take(key) is not None]
    key, longest = values[0] if values else (keys[-1], 2048)
    t.put("training.max_length_tokens", longest, key, default=2048)
    t.put("training.on_overlong", "truncate", key, default=2048)
    for other, _ in values[1:]:
        t.same(other, f"{key} takes precedence")
    return int(longest)
