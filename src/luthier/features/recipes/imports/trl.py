"""TRL: YAML of its command line (`trl sft --config FILE`) for sft, dpo, kto, reward and grpo.

Keys and defaults are those of TRL 1.10.0.
"""

from __future__ import annotations

from typing import Any, Final

from luthier.features.recipes.imports import drawn_losses, hf_arguments, pair_losses
from luthier.features.recipes.imports.hf_arguments import PACKING_NOTE, Defaults, Packing, number, put_training
from luthier.features.recipes.imports.methods import AdapterKeys, put_adapter, put_name
from luthier.features.recipes.imports.translation import HubParts, Key, Translation, becomes, harmless, missing

VERSION: Final = "TRL 1.10.0"
_MAX_LENGTH: Final = 1024
TRAINERS: Final = ("sft", "dpo", "kto", "reward", "grpo")
_RATES: Final = {"sft": 2e-5, "dpo": 1e-6, "kto": 1e-6, "reward": 1e-4, "grpo": 1e-6}
_OWN_KEYS: Final = {
    "sft": ("packing", "completion_only_loss", "assistant_only_loss", "dataset_text_field", "eos_token",
            "shuffle_dataset", "packing_strategy"),
    "dpo": ("precompute_ref_batch_size", "f_divergence_type", "label_smoothing", "loss_weights", "use_weighting"),
    "kto": ("desirable_weight", "undesirable_weight"),
    "reward": ("center_rewards_coefficient",),
    "grpo": ("num_generations", "reward_funcs", "max_completion_length", "scale_rewards", "num_iterations"),
}  # fmt: skip
_DRAWING = "draws, batches and servers of vLLM; Luthier draws with its own engine"

KEYS: Final[dict[str, Key]] = {
    "model_name_or_path": becomes("base_model", note="org/name: hub:org/name"),
    "model_revision": becomes("base_model", note="hub:org/name@revision"),
    "dataset_name": becomes("data.train", note="a file; org/name: hub:org/name"),
    "dataset_config": becomes("data.train", note="hub:org/name/config"),
    "dataset_train_split": becomes("data.train", note="hub:org/name[split]"),
    "dataset_text_field": becomes("data.columns", note="sft: the column of plain texts"),
    "use_peft": becomes("method.name", note="false: full"),
    "load_in_4bit": becomes("method.name", "method.quantisation", note="qlora, nf4"),
    "load_in_8bit": becomes("method.name", "method.quantisation", note="qlora, int8"),
    "use_dora": becomes("method.name", note="dora"),
    "use_rslora": becomes("method.name", note="rslora"),
    "lora_r": becomes("method.rank"),
    "lora_alpha": becomes("method.alpha"),
    "lora_dropout": becomes("method.dropout", note="0 where the trainer turns dropout off"),
    "lora_target_modules": becomes("method.targets", note="those that PEFT chooses, of architectures that are known "
                                   "here; of others they must be named"),
    "lora_modules_to_save": becomes("method.modules_to_save", note="embeddings and head"),
    "max_length": becomes("training.max_length_tokens", "training.on_overlong",
                          note="longer rows are cut; null: none is"),
    "truncation_mode": becomes("training.on_overlong", note="keep_start; keep_end is refused"),
    "packing": becomes("training.global_batch_tokens", note=PACKING_NOTE),
    "packing_strategy": becomes("training.global_batch_tokens", note="bfd; others are refused"),
    "completion_only_loss": becomes("objective.name", note="true; false is refused"),
    "eos_token": becomes("data.template", note="sft: <|im_end|> of Qwen's models: chat, whose turns end with it; "
                         "others are refused"),
    "assistant_only_loss": becomes("objective.name", note="true; false is refused"),
    "loss_type": becomes("objective.name", "objective.loss_type", "objective.loss_weighting",
                         note=f"by trainer; of dpo: {pair_losses.NOTE}; of grpo: {drawn_losses.NOTE}"),
    "beta": becomes("objective.beta", "objective.kl_coef", note="grpo: kl_coef"),
    "label_smoothing": becomes("objective.label_smoothing", note="of robust and exo_pair; others do not use it"),
    "desirable_weight": becomes("objective.desirable_weight"),
    "undesirable_weight": becomes("objective.undesirable_weight"),
    "disable_dropout": becomes("method.dropout", note="0 where true"),
    "center_rewards_coefficient": becomes("objective.center_rewards_coefficient", note="reward"),
    "reward_funcs": becomes("objective.rewards", note="needs --set: functions of Python are not translated"),
    "reward_weights": becomes("objective.rewards", note="needs --set"),
    "num_generations": becomes("objective.num_generations"),
    "max_completion_length": becomes("objective.max_new_tokens"),
    "temperature": becomes("objective.temperature"),
    "scale_rewards": becomes("objective.normalize_advantages", note="group, none; batch is refused"),
    **drawn_losses.keys("", has_delta=True),
    "mask_truncated_completions": becomes("objective.mask_truncated"),
    **hf_arguments.KEYS,
    **harmless("the machine, not what is trained", "attn_implementation", "dtype", "torch_dtype", "device_map",
               "bnb_4bit_quant_storage", "use_bnb_nested_quant", "dataset_num_proc", "padding_free",
               "pad_to_multiple_of", "precompute_ref_log_probs", "precompute_ref_batch_size", "env",
               "num_processes", "accelerate_config", "ignore_bias_buffers", "cast_lm_head_to_fp32"),
    **harmless(_DRAWING, "use_vllm", "vllm_mode", "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
               "vllm_server_base_url", "vllm_gpu_memory_utilization", "vllm_max_model_length",
               "vllm_tensor_parallel_size", "vllm_enable_sleep_mode", "vllm_model_impl", "vllm_group_port",
               "ds3_gather_for_generation", "num_generations_eval", "cache_implementation",
               "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_cap",
               "vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max", "use_transformers_paged",
               "use_transformers_continuous_batching", "transformers_continuous_batching_config"),
    **harmless("of a loss or a divergence that is refused where it is chosen", "f_alpha_divergence_coef",
               "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg",
               "vespo_lambda_neg", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
    **harmless("what is logged", "log_completions", "num_completions_to_print", "log_unique_prompts",
               "log_completions_hub_repo", "log_multimodal"),
    **harmless("how validation is computed and when; it does not change what is trained", "dataset_test_split"),
    **harmless("the machine, not what is trained", "dataset_streaming"),
    **harmless("a task of PEFT that follows from the objective", "lora_task_type"),
    **harmless("code of a model is never run: a model that needs it is refused by `luthier plan`", "trust_remote_code"),
    **missing("several datasets: join them to one file", "datasets", off=([],)),
    **missing("another chat template than the model's", "chat_template_path", off=("",)),
    **harmless("padding is never learned", "pad_token"),
    **missing("adapters on parameters that are not matrices", "lora_target_parameters", off=([],)),
    **missing("4 bits are nf4 here", "bnb_4bit_quant_type", off=("nf4",)),
    **missing("settings of the model's class", "model_init_kwargs", "dataset_kwargs", "generation_kwargs",
              "chat_template_kwargs", off=({},)),
    **missing("the router loss with another objective; see objective.router_aux_loss", "router_aux_loss_coef",
              off=(0, 0.0)),
    **missing("the order of rows before they are batched", "shuffle_dataset", off=(True, False)),
    **missing("a variant of the loss", "loss_weights", "use_weighting", "ld_alpha", "discopop_tau",
              "top_entropy_quantile", "entropy_coef",
              "multi_objective_aggregation", "off_policy_mask_threshold", "use_bias_correction_kl",
              "use_adaptive_entropy",
              off=(False, 0, 1.0, 0.0, "sum_then_normalize")),
    **missing("a divergence other than the reverse KL", "f_divergence_type", off=("reverse_kl",)),
    **missing("a reference model that moves", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    **missing("draws of several steps at once", "steps_per_generation", "generation_batch_size", off=()),
    **missing("sampling settings other than the temperature", "top_p", "top_k", "min_p", "repetition_penalty",
              "vllm_structured_outputs_regex", "max_tool_calling_iterations", off=(1.0, 0, "")),
}  # fmt: skip

_HUB_PARTS: Final = HubParts("dataset_config", "dataset_train_split")
_ADAPTER = AdapterKeys(
    ("use_peft", "load_in_4bit", "load_in_8bit", "use_dora", "use_rslora"),
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", 16, 32, 0.05, None, "lora_modules_to_save",
    model="model_name_or_path",
)  # fmt: skip


def trainers_of(given: dict[str, Any]) -> list[str]:
    """The trainers that have keys of a file for themselves."""
    return [name for name, keys in _OWN_KEYS.items() if any(key in given for key in keys)]


def translate(t: Translation, trainer: str) -> None:
    """Translate a file for one of the trainers."""
    t.put_model(t.take("model_name_or_path", ""), "model_name_or_path", "model_revision")
    t.put_hub_rows("data.train", t.take("dataset_name", ""), "dataset_name", _HUB_PARTS)
    _put_method(t, trainer)
    t.recipe["objective.name"] = "rank" if trainer == "reward" else trainer
    unit = 1
    if trainer == "sft":
        _put_sft(t)
    elif trainer == "grpo":
        unit = _put_grpo(t)
    elif trainer in ("dpo", "kto"):
        _put_preferences(t, trainer)
    elif (weight := t.take("center_rewards_coefficient")) is not None:
        t.put("objective.center_rewards_coefficient", number(weight), "center_rewards_coefficient")
    if trainer == "reward":
        t.notes.append(
            "rows with a column `margin`: TRL subtracts it from the difference of the scores; it is not read here"
        )
    if trainer != "grpo":
        t.same("mask_truncated_completions", "no answers are drawn")
        drawn_losses.leave_out(t, "", "no answers are drawn", has_delta=True)
        _put_length(t)
    packing = _packing(t) if trainer == "sft" else None
    order = "sequential" if trainer == "kto" else "random"
    put_training(t, Defaults(learning_rate=_RATES[trainer], order=order), rows_per_unit=unit, packing=packing)
    if trainer == "grpo":
        drawn_losses.divide_steps(t, drawn_losses.num_updates(t))


def _packing(t: Translation) -> Packing | None:
    """How rows are packed: in one of the ways that keep each row whole."""
    strategy = t.take("packing_strategy", "bfd")
    if not t.take("packing", False):
        t.same("packing", "off")
        t.same("packing_strategy", "packing is off")
        return None
    if strategy == "bfd":
        t.same("packing_strategy", "rows are packed whole, and longer ones are cut first")
    else:
        note = f"{strategy}: rows are split across sequences there; here a row stays whole: bfd"
        t.refuse("packing_strategy", note)
    # With `max_length: null` TRL does not pack.
    return Packing("packing", None if t.is_null("max_length") else int(t.take("max_length", _MAX_LENGTH)))


def _put_method(t: Translation, trainer: str) -> None:
    is_peft = t.take("use_peft", False)
    variants = {"dora": bool(t.take("use_dora", False)), "rslora": bool(t.take("use_rslora", False))}
    is_4bit, is_8bit = bool(t.take("load_in_4bit", False)), bool(t.take("load_in_8bit", False))
    is_off = bool(t.take("disable_dropout", trainer in ("dpo", "kto", "reward")))
    if not is_peft:
        t.put("method.name", "full", "use_peft", default=False)
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save",
                    "use_dora", "use_rslora"):  # fmt: skip
            t.same(key, "use_peft is not set")
        for key in ("load_in_4bit", "load_in_8bit"):
            if not t.take(key, False):
                t.same(key, "off")
        t.same("disable_dropout", "current models have no dropout")
        return
    put_name(t, _ADAPTER.switches, is_4bit=is_4bit, is_8bit=is_8bit, variants=variants)
    put_adapter(t, _ADAPTER, disables_dropout=is_off)
    t.same("disable_dropout", "dropout is 0" if is_off else "dropout stays")


def _put_sft(t: Translation) -> None:
    for key in ("completion_only_loss", "assistant_only_loss"):
        value = t.take(key)
        if value is False:
            t.refuse(key, "prompts are never learned here; for plain texts use a column text")
        elif value:
            t.put("objective.name", "sft", key, note="answers alone are learned")
    if t.take("assistant_only_loss") is None:
        t.notes.append(
            "rows with `messages`: TRL learns every turn unless assistant_only_loss is true; Luthier learns the "
            "assistant's turns alone"
        )
    if (field := t.take("dataset_text_field")) is not None:
        t.put("data.columns", {"text": field}, "dataset_text_field")
        t.put("data.template", "plain", "dataset_text_field")
    _put_end(t)
    loss = t.take("loss_type", "nll")
    if loss in ("nll", "chunked_nll", "dft"):
        t.put("objective.loss_weighting", "dft" if loss == "dft" else "token", "loss_type", default="nll")
    else:
        t.refuse("loss_type", "sft knows nll and dft", set_by="objective.loss_weighting")


def _put_end(t: Translation) -> None:
    """The token behind an answer: Qwen's chat template writes one by its text, whatever the tokenizer's own is."""
    if (end := t.take("eos_token")) is None:
        return
    is_written = end == "<|im_end|>" and str(t.given.get("model_name_or_path")).startswith("Qwen/Qwen")
    if is_written and not t.has("dataset_text_field") and "base_model" not in t.settled:
        t.put("data.template", "chat", "eos_token", note="the end of each answer, as the chat template writes it")
    else:
        t.refuse("eos_token", "another end of answers than the tokenizer's own or that of its chat template")


def _put_preferences(t: Translation, trainer: str) -> None:
    if trainer == "dpo":
        pair_losses.put_pair_loss(t, "loss_type", "label_smoothing")
    elif t.take("loss_type", "kto") == "kto":
        t.put("objective.name", "kto", "loss_type", default="kto")
    else:
        t.refuse("loss_type", "known here: kto", set_by="objective.name")
    t.put("objective.beta", number(t.take("beta", 0.1)), "beta", default=0.1)
    if trainer == "kto":
        for key in ("desirable_weight", "undesirable_weight"):
            t.put(f"objective.{key}", number(t.take(key, 1.0)), key, default=1.0)


def _put_grpo(t: Translation) -> int:
    """Returns the answers to a prompt, by which the batch is divided."""
    note = "rewards are functions of Python in TRL: name metrics or graders, such as [exact_match]"
    t.take("reward_funcs"), t.take("reward_weights")
    t.refuse("reward_funcs", note, set_by="objective.rewards")
    if t.has("reward_weights"):
        t.refuse("reward_weights", "a weight is part of its reward", set_by="objective.rewards")
    count = t.take("num_generations", 8)
    t.put("objective.num_generations", count, "num_generations", default=8)
    t.put("objective.max_new_tokens", t.take("max_completion_length", 512), "max_completion_length", default=512)
    t.put("objective.temperature", number(t.take("temperature", 1.0)), "temperature", default=1.0)
    t.put("objective.kl_coef", number(t.take("beta", 0.0)), "beta", default=0.0)
    scale = t.take("scale_rewards", "group")
    if scale in ("group", True, "none", False):
        t.put("objective.normalize_advantages", scale in ("group", True), "scale_rewards", default="group")
    else:
        t.refuse("scale_rewards", "advantages are divided by the spread of their group, or not at all",
                 set_by="objective.normalize_advantages")  # fmt: skip
    if t.take("mask_truncated_completions", False):
        t.put("objective.mask_truncated", True, "mask_truncated_completions")
    t.same("mask_truncated_completions", "off")
    drawn_losses.put_drawn_loss(t, has_delta=True)
    return int(count)


def _put_length(t: Translation) -> None:
    if t.is_null("max_length"):
        t.leave_open("max_length", "no row is cut; one that is longer than the model's context is an error")
        t.take("truncation_mode")
        t.same("truncation_mode", "no row is cut")
        return
    t.put("training.max_length_tokens", t.take("max_length", _MAX_LENGTH), "max_length", default=_MAX_LENGTH)
    if t.take("truncation_mode", "keep_start") == "keep_start":
        t.put("training.on_overlong", "truncate", "truncation_mode", default="keep_start")
    else:
        t.refuse("truncation_mode", "rows are cut at their end alone", set_by="training.on_overlong")
