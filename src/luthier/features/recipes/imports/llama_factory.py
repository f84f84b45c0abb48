"""LLaMA-Factory: the YAML of `llamafactory-cli train FILE`, with its dataset_info.json.

Keys and defaults are those of LLaMA-Factory 0.9.6.
"""

from __future__ import annotations

from typing import Final

from luthier.features.recipes.imports import hf_arguments
from luthier.features.recipes.imports.hf_arguments import (
    FP8_NOTE,
    PACKING_NOTE,
    Defaults,
    Packing,
    number,
    put_fp8,
    put_training,
)
from luthier.features.recipes.imports.llama_factory_rows import put_datasets
from luthier.features.recipes.imports.methods import AdapterKeys, put_adapter, put_name
from luthier.features.recipes.imports.translation import Key, Translation, becomes, harmless, missing

VERSION: Final = "LLaMA-Factory 0.9.6"
_LOSSES: Final = {"sigmoid": "dpo", "hinge": "dpo", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
_STAGES: Final = {"pt": "pretraining", "sft": "sft", "rm": "rank", "dpo": "dpo", "kto": "kto"}
_TRAINER: Final = "the trainer of Megatron, whose loss and batches are its own"
_FOREIGN_TEMPLATES: Final = ("default", "alpaca", "vicuna", "fewshot", "custom", "base")
"""Templates that belong to no family of models: none has them as its own."""
KEYS: Final[dict[str, Key]] = {
    "model_name_or_path": becomes("base_model", note="org/name: hub:org/name"),
    "model_revision": becomes("base_model", note="hub:org/name@revision"),
    "stage": becomes("objective.name", note="pt: pretraining; sft; rm: rank; dpo; kto; ppo is refused"),
    "pref_loss": becomes("objective.name", "objective.loss_type", "objective.nll_over",
                         note="sigmoid, hinge: dpo; ipo, simpo; orpo: nll_over answer; kto_pair is refused"),
    "pref_beta": becomes("objective.beta"),
    "simpo_gamma": becomes("objective.gamma"),
    "pref_ftx": becomes("objective.nll_weight", note="of dpo, ipo and simpo"),
    "dpo_label_smoothing": becomes("objective.label_smoothing"),
    "kto_chosen_weight": becomes("objective.desirable_weight"),
    "kto_rejected_weight": becomes("objective.undesirable_weight"),
    "use_dft_loss": becomes("objective.loss_weighting", note="true: dft"),
    "finetuning_type": becomes("method.name", note="lora, full; freeze and oft are refused"),
    "quantization_bit": becomes("method.name", "method.quantisation", note="4: qlora, nf4; 8: qlora, int8"),
    "use_dora": becomes("method.name", note="dora"),
    "use_rslora": becomes("method.name", note="rslora"),
    "pissa_init": becomes("method.name", note="pissa"),
    "pissa_iter": becomes("method.num_svd_iterations", note="-1: 0, the exact decomposition"),
    "loraplus_lr_ratio": becomes("method.name", "method.learning_rate_ratio", note="loraplus"),
    "lora_rank": becomes("method.rank"),
    "lora_alpha": becomes("method.alpha", note="twice the rank by default"),
    "lora_dropout": becomes("method.dropout"),
    "lora_target": becomes("method.targets", note="all: all-linear"),
    "additional_target": becomes("method.modules_to_save", note="embeddings and head"),
    "dataset": becomes("data.train", "data.columns", note="by dataset_info.json; several are sources"),
    "dataset_dir": becomes("data.train", note="where dataset_info.json is"),
    "max_samples": becomes("data.train", "data.subset", note="rows of each source; with --set data.train a share"),
    "eval_dataset": becomes("data.validation", note="by dataset_info.json"),
    "val_size": becomes("data.validation", note="a share, below 1"),
    "template": becomes("data.template", note="that of a family of models: chat; empty: plain; others need --set"),
    "enable_thinking": becomes("data.template_options", note="of reasoning templates"),
    "cutoff_len": becomes("training.max_length_tokens", "training.on_overlong", note="longer rows are cut"),
    "packing": becomes("training.global_batch_tokens", note=PACKING_NOTE),
    "neat_packing": becomes("training.global_batch_tokens", note="as packing"),
    "train_on_prompt": becomes("objective.name", note="false; true is refused"),
    "mask_history": becomes("objective.name", note="false; true is refused"),
    "early_stopping_steps": becomes("training.early_stopping_patience"),
    "disable_gradient_checkpointing": becomes("training.gradient_checkpointing", note="the opposite"),
    "disable_shuffling": becomes("training.batch_order", note="true: as_given"),
    "use_muon": becomes("training.optimizer.name", note="muon"),
    **hf_arguments.KEYS,
    **harmless("the machine, not what is trained", "flash_attn", "enable_liger_kernel", "use_unsloth",
               "use_unsloth_gc", "use_reentrant_gc", "low_cpu_mem_usage", "infer_backend", "infer_dtype",
               "offload_folder", "use_kv_cache", "preprocessing_num_workers", "preprocessing_batch_size",
               "overwrite_cache", "tokenized_path", "data_shared_file_system", "cache_dir", "use_fast_tokenizer",
               "device_map", "ray_num_workers", "ray_run_name", "ray_storage_path", "resources_per_worker",
               "placement_strategy", "double_quantization", "quantization_device_map", "pure_bf16",
               "print_param_status", "fp8_backend", "streaming", "buffer_size", "use_v1_kernels", "ray_init_kwargs",
               "master_addr", "master_port", "enable_torch_profiler", "profiler_output_dir", "profiler_wait_steps",
               "profiler_warmup_steps", "profiler_active_steps", "profiler_repeat", "profiler_record_shapes",
               "profiler_profile_memory", "profiler_with_stack", "profile_modules"),
    **harmless("Luthier computes in bfloat16 or float32, as measured on the machine (training.precision)",
               "upcast_layernorm", "upcast_lmhead_output"),
    **harmless("a key of the hub, which Luthier reads from the environment", "hf_hub_token", "ms_hub_token",
               "om_hub_token"),
    **harmless("what is logged", "plot_loss", "compute_accuracy", "include_effective_tokens_per_second",
               "include_num_input_tokens_seen"),
    **harmless("Luthier does not report to SwanLab", "use_swanlab", "swanlab_project", "swanlab_run_name",
               "swanlab_mode", "swanlab_workspace", "swanlab_api_key", "swanlab_logdir", "swanlab_lark_webhook_url",
               "swanlab_lark_secret"),
    **harmless("how answers are drawn at the end; see evaluation in docs/recipe.md", "do_sample", "top_p", "top_k",
               "temperature", "num_beams", "max_new_tokens", "predict_with_generate", "eval_num_beams",
               "repetition_penalty", "length_penalty", "skip_special_tokens", "vllm_maxlen", "vllm_gpu_util",
               "vllm_enforce_eager", "vllm_max_lora_rank", "vllm_config", "sglang_maxlen", "sglang_mem_fraction",
               "sglang_tp_size", "sglang_config", "sglang_lora_backend"),
    **harmless("the export of a model; see `luthier export`", "export_dir", "export_size", "export_device",
               "export_quantization_bit", "export_quantization_dataset", "export_quantization_nsamples",
               "export_quantization_maxlen", "export_legacy_format", "export_hub_model_id"),
    **harmless("prompts have no loss in any case", "ignore_pad_token_for_loss"),
    **harmless("code of a model is never run: a model that needs it is refused by `luthier plan`", "trust_remote_code"),
    **missing("it continues training an adapter", "adapter_name_or_path", "adapter_folder", off=("",)),
    **missing("tokens in addition to the tokenizer's own", "resize_vocab", "add_tokens", "add_special_tokens",
              "new_special_tokens_config", "split_special_tokens", off=(False, "")),
    **missing("datasets take turns by probabilities: give sources a weight", "mix_strategy", "interleave_probs",
              off=("concat", "")),
    **missing("a system message for rows without one: write it into the rows", "default_system", off=("",)),
    **missing("another position encoding or attention", "rope_scaling", "shift_attn", "mixture_of_depths"),
    **missing("the tools of rows follow the model's chat template", "tool_format", off=("",)),
    **missing("thoughts of earlier turns follow the model's chat template", "preserve_thinking"),
    **missing("gradients of some matrices in low rank, or blocks in turn", "use_galore", "use_apollo", "use_badam",
              "use_adam_mini", "use_llama_pro"),
    **harmless("of an optimizer that is refused where it is chosen", "galore_target", "galore_rank",
               "galore_update_interval", "galore_scale", "galore_proj_type", "galore_layerwise", "apollo_target",
               "apollo_rank", "apollo_update_interval", "apollo_scale", "apollo_proj", "apollo_proj_type",
               "apollo_scale_type", "apollo_layerwise", "apollo_scale_front", "badam_mode", "badam_start_block",
               "badam_switch_mode", "badam_switch_interval", "badam_update_ratio", "badam_mask_mode",
               "badam_verbose"),
    **harmless("of a method that is refused where it is chosen", "oft_block_size", "oft_target", "oft_rank",
               "module_dropout"),
    **missing("experts on the CPU with adapters of their own (KTransformers); see method.targets: experts", "use_kt",
              "kt_config", "kt_weight_path", "kt_non_expert_weight_path", "kt_expert_checkpoint_path",
              "kt_use_lora_experts", "kt_lora_expert_num", "kt_lora_expert_intermediate_size", off=(False, {}, "")),
    **harmless("what is computed again in the backward pass", "kt_cpu_activation"),
    **missing(_TRAINER, "tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size",
              "context_parallel_size", off=(1,)),
    **missing(_TRAINER, "sequence_parallel", "use_distributed_optimizer", "use_packed_sequences", "mixed_precision",
              "export_hf_on_finish", "moe_grouped_gemm", "moe_token_dispatcher_type", "recompute_granularity",
              "bias_activation_fusion", "apply_rope_fusion", "overlap_param_gather", "overlap_grad_reduce",
              off=(False, "")),
    **missing("layers are trained by number", "freeze_trainable_layers", "freeze_trainable_modules",
              "freeze_extra_modules", off=("",)),
    **missing("a variant of the preference loss", "pref_bco_weight", "ld_alpha", off=(0, 0.0)),
    **missing("another reference model", "ref_model", "ref_model_adapters", "ref_model_quantization_bit", off=("",)),
    **missing("PPO with a reward model; see grpo", "reward_model", "reward_model_type", "reward_model_adapters",
              "ppo_epochs", "ppo_buffer_size", "ppo_target", "ppo_score_norm", "ppo_whiten_rewards", off=(False, "")),
    **missing("another loss", "use_asft_loss", "use_eaft_loss"),
    "fp8": becomes("training.precision", note=FP8_NOTE),
    **harmless("the machine, not what is trained", "fp8_enable_fsdp_float8_all_gather"),
    **missing("4 bits other than nf4", "quantization_method", "quantization_type",
              off=("bnb", "bitsandbytes", "nf4")),
    **harmless("of images and sounds; rows that hold some are refused", "media_dir", "image_max_pixels",
               "video_max_pixels", "video_fps", "video_maxlen", "freeze_vision_tower",
               "freeze_multi_modal_projector", "image_min_pixels", "video_min_pixels", "image_do_pan_and_scan",
               "crop_to_patches", "use_audio_in_video", "audio_sampling_rate"),
    **missing("the language model is frozen", "freeze_language_model"),
    **missing("a loss of routers; see objective.router_aux_loss", "moe_aux_loss_coef", off=(0,)),
    **harmless("an adapter is always saved for the unchanged base", "pissa_convert"),
    **missing("it continues beside another adapter, or has a learning rate of the embeddings", "create_new_adapter",
              "loraplus_lr_embedding"),
    **missing("it trains from random weights", "train_from_scratch"),
}  # fmt: skip

_ADAPTER: Final = AdapterKeys(
    ("finetuning_type", "quantization_bit", "use_dora", "use_rslora", "pissa_init", "loraplus_lr_ratio"),
    "lora_rank", "lora_alpha", "lora_dropout", "lora_target", 8, 16, 0.0, "all", "additional_target",
)  # fmt: skip


def translate(t: Translation) -> None:
    """Translate a LLaMA-Factory file."""
    t.put_model(t.take("model_name_or_path", ""), "model_name_or_path", "model_revision")
    stage = _put_objective(t)
    put_datasets(t, stage)
    _put_template(t)
    _put_method(t)
    t.put("training.max_length_tokens", t.take("cutoff_len", 2048), "cutoff_len", default=2048)
    if stage != "pt":
        t.put("training.on_overlong", "truncate", "cutoff_len", default=2048)
    packed = [key for key in ("packing", "neat_packing") if t.take(key, False)]
    for key in ("packing", "neat_packing"):
        if stage == "pt" or key not in packed:
            t.same(key, "blocks are packed in any case" if stage == "pt" else "off")
        elif key != packed[0]:
            t.same(key, "as packing")
    order = "sequential" if t.take("disable_shuffling", False) else "random"
    t.same("disable_shuffling", "see training.batch_order")
    optimizer = "muon" if t.take("use_muon", False) else "adamw_torch_fused"
    t.same("use_muon", "see training.optimizer")
    defaults = Defaults(order=order, optimizer=optimizer)
    put_training(t, defaults, packing=_packing(t, packed, stage))
    put_fp8(t, "fp8")
    if (patience := t.take("early_stopping_steps")) is not None:
        t.put("training.early_stopping_patience", patience, "early_stopping_steps")
    if (is_off := t.take("disable_gradient_checkpointing")) is not None:
        t.put("training.gradient_checkpointing", not is_off, "disable_gradient_checkpointing")


def _packing(t: Translation, packed: list[str], stage: str) -> Packing | None:
    """How rows are packed, by the keys that turn it on; blocks of texts are in any case."""
    if not packed or stage == "pt":
        return None
    note = "" if "neat_packing" in packed else ", as those of a sequence do there without neat_packing"
    return Packing(packed[0], t.take("cutoff_len", 2048) if stage == "sft" else None, note)


def _put_objective(t: Translation) -> str:
    stage = str(t.take("stage", "sft"))
    for key, why in (
        ("train_on_prompt", "prompts are never learned here; for plain texts use the stage pt"),
        ("mask_history", "every answer of a conversation is learned; give earlier ones `weight: 0`"),
    ):
        if t.take(key, False):
            t.refuse(key, why)
        t.same(key, "off")
    if stage not in _STAGES:
        t.refuse("stage", f"known here: {', '.join(_STAGES)}", set_by="objective.name")
        return stage
    loss = str(t.take("pref_loss", "sigmoid"))
    if stage == "dpo" and loss not in _LOSSES:
        t.refuse("pref_loss", f"known here: {', '.join(_LOSSES)}", set_by="objective.name")
    name = _LOSSES.get(loss, "dpo") if stage == "dpo" else _STAGES[stage]
    t.put("objective.name", name, "stage", *(["pref_loss"] if stage == "dpo" and t.has("pref_loss") else []),
          default="sft")  # fmt: skip
    if stage in ("dpo", "kto"):
        t.put("objective.beta", number(t.take("pref_beta", 0.1)), "pref_beta", default=0.1)
    if loss == "hinge" and name == "dpo" and stage == "dpo":
        t.put("objective.loss_type", "hinge", "pref_loss")
        t.take("dpo_label_smoothing")
        t.same("dpo_label_smoothing", "hinge has no label smoothing there")
    elif name == "dpo" and t.take("dpo_label_smoothing"):
        t.put("objective.label_smoothing", number(t.take("dpo_label_smoothing")), "dpo_label_smoothing")
    if name == "orpo":
        # Its cross-entropy is over the tokens of the answer, unlike that of the authors and of TRL.
        t.put("objective.nll_over", "answer", "pref_loss")
    if name == "simpo":
        t.put("objective.gamma", number(t.take("simpo_gamma", 0.5)), "simpo_gamma", default=0.5)
    if (weight := number(t.take("pref_ftx", 0))) and name in ("dpo", "ipo", "simpo"):
        t.put("objective.nll_weight", weight, "pref_ftx")
    elif weight:
        t.refuse("pref_ftx", "cross-entropy is added to dpo, ipo and simpo only")
    t.same("pref_ftx", "off")
    if stage == "kto":
        for key, place in (("kto_chosen_weight", "desirable_weight"), ("kto_rejected_weight", "undesirable_weight")):
            t.put(f"objective.{place}", number(t.take(key, 1.0)), key, default=1.0)
    if t.take("use_dft_loss", False):
        t.put("objective.loss_weighting", "dft", "use_dft_loss")
    t.same("use_dft_loss", "off")
    return stage


def _put_method(t: Translation) -> None:
    kind, bits = t.take("finetuning_type", "lora"), t.take("quantization_bit")
    variants = {
        "dora": bool(t.take("use_dora", False)),
        "rslora": bool(t.take("use_rslora", False)),
        "pissa": bool(t.take("pissa_init", False)),
        "loraplus": t.take("loraplus_lr_ratio") is not None,
    }
    if kind == "full":
        t.put("method.name", "full", "finetuning_type")
        for key in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "additional_target", "pissa_iter",
                    "use_dora", "use_rslora", "pissa_init"):  # fmt: skip
            t.take(key)
            t.same(key, "no adapter is trained")
        return
    if kind != "lora" or bits not in (None, 4, 8):
        key = "finetuning_type" if kind != "lora" else "quantization_bit"
        t.refuse(key, "known here: lora and full; 4 and 8 bits", set_by="method.name")
        return
    name = put_name(t, _ADAPTER.switches, is_4bit=bits == 4, is_8bit=bits == 8, variants=variants, default="lora")
    if name == "pissa":
        num = t.take("pissa_iter", 16)
        t.put("method.num_svd_iterations", max(num, 0), "pissa_iter", default=16)
    if name == "loraplus":
        t.put("method.learning_rate_ratio", number(t.take("loraplus_lr_ratio")), "loraplus_lr_ratio")
    put_adapter(t, _with_alpha(2 * t.take("lora_rank", 8)))


def _with_alpha(alpha: int) -> AdapterKeys:
    return AdapterKeys(
        _ADAPTER.switches, _ADAPTER.rank, _ADAPTER.alpha, _ADAPTER.dropout, _ADAPTER.targets, 8, alpha, 0.0, "all",
        _ADAPTER.modules_to_save,
    )  # fmt: skip


def _put_template(t: Translation) -> None:
    name = t.take("template")
    if name == "empty":
        t.put("data.template", "plain", "template")
    elif name in _FOREIGN_TEMPLATES:
        note = "no model has this template as its own; `--set data.template=chat` takes the model's"
        t.refuse("template", note, set_by="data.template")
    elif name is not None:
        t.put("data.template", "chat", "template", note="the model's own chat template is used")
    if (is_on := t.take("enable_thinking")) is not None:
        t.put("data.template_options", {"enable_thinking": is_on}, "enable_thinking")
    share = t.take("val_size", 0)
    if share == 0:
        t.same("val_size", "no validation")
    elif share < 1:
        t.put("data.validation", float(share), "val_size")
    else:
        t.refuse("val_size", "a number of rows, and a recipe has a share of them", set_by="data.validation")
