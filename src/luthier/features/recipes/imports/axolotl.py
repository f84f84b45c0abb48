"""axolotl: the YAML of `axolotl train FILE`. Keys and defaults are those of axolotl 0.18.0."""

from __future__ import annotations

from typing import Any, Final

from luthier.features.recipes.imports import drawn_losses, pair_losses, trackers
from luthier.features.recipes.imports.axolotl_model import MODEL_KEYS, put_model_keys
from luthier.features.recipes.imports.axolotl_rows import DATASET_KEYS, put_datasets, put_template
from luthier.features.recipes.imports.hf_arguments import (
    FP8_NOTE,
    OPTIMIZER_NOTE,
    PACKING_NOTE,
    Packing,
    number,
    put_batch,
    put_checkpointing,
    put_choice,
    put_decays,
    put_fp8,
    put_length,
    put_optimizer,
    put_precision,
    put_schedule,
    put_shared_devices,
    put_steps,
    put_warmup,
    warms_up_itself,
)
from luthier.features.recipes.imports.methods import (
    ALL_LINEAR,
    AdapterKeys,
    put_adapter,
    put_modules_to_save,
    put_name,
)
from luthier.features.recipes.imports.translation import Key, Translation, becomes, harmless, missing

VERSION: Final = "axolotl 0.18.0"
_OBJECTIVES: Final = {"dpo": "dpo", "ipo": "ipo", "kto": "kto", "orpo": "orpo", "simpo": "simpo", "grpo": "grpo"}
_OVERLONG: Final = {"drop": "drop", "truncate": "truncate", "raise": "error"}
_SHARED: Final = ("tensor_parallel_size", "context_parallel_size", "sequence_parallel_degree")
_SHARED_NOTE: Final = "of devices that share rows: --devices is divided by it"
_KERNELS: Final = "how attention and losses are computed, not what they are"
_PLUGINS: Final = frozenset(
    f"axolotl.integrations.{name}"
    for name in (
        "liger.LigerPlugin", "cut_cross_entropy.CutCrossEntropyPlugin", "kernels.KernelsPlugin",
        "expert_parallel.ExpertParallelPlugin", "swanlab.SwanLabPlugin",
    )
)  # fmt: skip
"""Plug-ins that compute the same in another way, or only report."""

KEYS: Final[dict[str, Key]] = {
    "base_model": becomes("base_model", note="org/name: hub:org/name"),
    "revision_of_model": becomes("base_model", note="hub:org/name@revision"),
    **DATASET_KEYS,
    **MODEL_KEYS,
    "val_set_size": becomes("data.validation", note="a share, below 1"),
    "chat_template": becomes("data.template", note="tokenizer_default, and those of a family of models: chat; others "
                             "need --set data.template"),
    "chat_template_kwargs": becomes("data.template_options"),
    "train_on_inputs": becomes("objective.name", note="false; true is refused"),
    "rl": becomes("objective.name", note="dpo, ipo, kto, orpo, simpo, grpo"),
    "reward_model": becomes("objective.name", note="true: rank"),
    "num_labels": becomes("objective.name", note="1, of a reward model; others are refused"),
    "center_rewards_coefficient": becomes("objective.center_rewards_coefficient", note="of a reward model"),
    "rl_beta": becomes("objective.beta"),
    "orpo_alpha": becomes("objective.beta"),
    "simpo_gamma": becomes("objective.gamma", note="the same margin"),
    "dpo_loss_type": becomes("objective.name", "objective.loss_type", note=pair_losses.NOTE),
    "dpo_label_smoothing": becomes("objective.label_smoothing", note="of robust and exo_pair; others do not use it"),
    "kto_desirable_weight": becomes("objective.desirable_weight"),
    "kto_undesirable_weight": becomes("objective.undesirable_weight"),
    "trl.beta": becomes("objective.kl_coef"),
    "trl.num_generations": becomes("objective.num_generations"),
    "trl.max_completion_length": becomes("objective.max_new_tokens"),
    "trl.temperature": becomes("objective.temperature"),
    "trl.scale_rewards": becomes("objective.normalize_advantages"),
    "trl.mask_truncated_completions": becomes("objective.mask_truncated"),
    "trl.loss_type": becomes("objective.loss_weighting", note=drawn_losses.NOTE),
    **drawn_losses.keys("trl.", has_delta=False),
    "trl.reward_funcs": becomes("objective.rewards", note="needs --set: functions of Python are not translated"),
    "trl.reward_weights": becomes("objective.rewards", note="needs --set"),
    "adapter": becomes("method.name", note="lora, qlora; none: full"),
    "load_in_4bit": becomes("method.name", "method.quantisation", note="qlora, nf4"),
    "load_in_8bit": becomes("method.name", "method.quantisation", note="qlora, int8"),
    "peft_use_dora": becomes("method.name", note="dora"),
    "peft_use_rslora": becomes("method.name", note="rslora"),
    "peft_init_lora_weights": becomes("method.name", note="pissa, olora"),
    "loraplus_lr_ratio": becomes("method.name", "method.learning_rate_ratio", note="loraplus"),
    "lora_r": becomes("method.rank"),
    "lora_alpha": becomes("method.alpha"),
    "lora_dropout": becomes("method.dropout"),
    "lora_target_modules": becomes("method.targets"),
    "lora_target_linear": becomes("method.targets", note="true: all-linear"),
    "lora_target_parameters": becomes("method.targets", note="needs --set: experts here have a rank of their own"),
    "lora_modules_to_save": becomes("method.modules_to_save", note="embeddings and head"),
    "micro_batch_size": becomes("training.global_batch_size", note="times gradient_accumulation_steps and --devices"),
    "gradient_accumulation_steps": becomes("training.global_batch_size", note="a factor of it"),
    "batch_size": becomes("training.global_batch_size", note="times --devices, in place of a number of steps"),
    **{key: becomes("training.global_batch_size", note=_SHARED_NOTE) for key in _SHARED},
    "sample_packing": becomes("training.global_batch_tokens", note=PACKING_NOTE),
    "num_epochs": becomes("training.epochs", note="left out where max_steps is given"),
    "max_steps": becomes("training.max_steps"),
    "learning_rate": becomes("training.learning_rate"),
    "lr_scheduler": becomes("training.lr_schedule", note="cosine, linear, constant; others are refused"),
    "lr_scheduler_kwargs": becomes("training.min_lr_ratio", note="min_lr_rate or min_lr of cosine_with_min_lr"),
    "cosine_min_lr_ratio": becomes("training.min_lr_ratio", note="of lr_scheduler cosine; 1: constant"),
    "warmup_steps": becomes("training.warmup_steps", note="below 1: training.warmup_fraction"),
    "warmup_ratio": becomes("training.warmup_fraction"),
    "optimizer": becomes("training.optimizer.name", note=OPTIMIZER_NOTE),
    "adam_beta1": becomes("training.optimizer.beta1"),
    "adam_beta2": becomes("training.optimizer.beta2"),
    "adam_epsilon": becomes("training.optimizer.epsilon"),
    "weight_decay": becomes("training.weight_decay"),
    "max_grad_norm": becomes("training.max_grad_norm"),
    "neftune_noise_alpha": becomes("training.neftune_alpha"),
    "sequence_len": becomes("training.max_length_tokens"),
    "excess_length_strategy": becomes("training.on_overlong", note="raise: error"),
    "group_by_length": becomes("training.batch_order", note="true: by_length"),
    "gradient_checkpointing": becomes("training.gradient_checkpointing"),
    "torch_compile": becomes("training.compile"),
    "fp8": becomes("training.precision", note=FP8_NOTE),
    "bf16": becomes("training.precision", note="true: bfloat16; false and auto: auto"),
    "eval_steps": becomes("training.validate_every_steps", note="a fraction: ten a run"),
    "save_steps": becomes("training.checkpoint_every_steps", note="a fraction: every 50 steps"),
    "save_total_limit": becomes("training.keep_checkpoints"),
    "early_stopping_patience": becomes("training.early_stopping_patience"),
    "seed": becomes("training.seed"),
    **harmless(_KERNELS, "flash_attention", "attn_implementation", "sdp_attention", "xformers_attention",
               "flex_attention", "eager_attention", "sage_attention", "s2_attention", "flash_attn_cross_entropy",
               "flash_attn_rms_norm", "flash_attn_fuse_mlp", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel",
               "lora_embedding_kernel", "chunked_cross_entropy", "tiled_mlp", "batch_flattening", "liger_rope",
               "liger_rms_norm", "liger_glu_activation", "liger_fused_linear_cross_entropy", "liger_layer_norm",
               "cut_cross_entropy", "dpo_use_liger_kernel", "dpo_padding_free", "experts_implementation",
               "flex_attn_compile_kwargs", "flash_optimum", "gemma4_hybrid_attn_impl", "large_head_attention",
               "flash_attn_d512", "sdpa_varlen", "fused_attn_kernel", "chunked_cross_entropy_num_chunks",
               "tiled_mlp_num_shards", "tiled_mlp_use_original_mlp", "liger_rms_norm_gated", "use_scattermoe",
               "use_sonicmoe", "use_dsv4_kernels", "dpo_use_logits_to_keep", "trl.use_liger_loss"),
    **harmless("the machine, not what is trained", "deepspeed", "fsdp", "fsdp_config", "fsdp_version",
               "ddp_find_unused_parameters", "local_rank", "use_kernels", "remove_unused_columns",
               "device_map", "ddp_timeout", "ddp", "dataset_processes", "dataset_num_proc", "dataloader_num_workers",
               "dataloader_pin_memory", "dataloader_prefetch_factor", "tf32", "gradient_checkpointing_kwargs",
               "activation_offloading", "layer_offloading", "low_cpu_mem_usage", "gc_steps", "max_memory",
               "gpu_memory_limit", "lora_on_cpu", "eval_batch_size", "pad_to_sequence_len", "pad_to_multiple_of",
               "auto_find_batch_size", "use_ray", "ray_num_workers", "ray_run_name", "dp_shard_size",
               "dp_replicate_size", "merge_lora", "merge_method",
               "trl.use_vllm", "trl.vllm_mode", "trl.vllm_server_host", "trl.vllm_server_port",
               "trl.vllm_server_timeout", "trl.log_completions", "sample_packing_group_size",
               "sample_packing_bin_size", "precompute_ref_log_probs", "experimental_skip_move_to_device",
               "qlora_sharded_model_loading", "torch_empty_cache_steps", "gc_collect_steps", "deepcompile",
               "accelerator_config", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
               "heads_k_stride", "ring_attn_func", "expert_parallel_size", "fsdp_final_state_dict_type",
               "torch_compile_backend", "torch_compile_mode", "torch_compile_options", "profiler_steps",
               "profiler_steps_start", "dynamic_checkpoint", "pretrain_multipack_buffer_size",
               "streaming_multipack_buffer_size", "sample_packing_mp_start_method", "sample_packing_sequentially",
               "selective_checkpointing", "resources_per_worker", "vllm", "trl.vllm_enable_sleep_mode",
               "fp8_enable_fsdp_float8_all_gather",
               "trl.vllm_lora_sync", "trl.vllm_sync_interval", "trl.reward_num_workers"),
    **harmless("Luthier computes in bfloat16 or float32, as measured on the machine (training.precision)",
               "fp16", "float16", "bfloat16", "float32"),
    **trackers.AXOLOTL_KEYS,
    **harmless("what is logged", "wandb_watch", "logging_steps", "debug", "include_tokens_per_second", "include_tkps"),
    **harmless("here a run has its own id in its trackers", "wandb_run_id"),
    **harmless("a Space is named by TRACKIO_SPACE_ID in the environment", "trackio_space_id"),
    **harmless("Luthier does not report to Comet, SwanLab and OpenTelemetry", "use_comet", "comet_project_name",
               "comet_workspace", "comet_experiment_key", "comet_mode", "comet_online", "comet_experiment_config",
               "use_swanlab", "swanlab_project", "swanlab_experiment_name", "swanlab_description", "swanlab_mode",
               "swanlab_workspace", "swanlab_log_model", "swanlab_web_host", "swanlab_api_host",
               "swanlab_lark_webhook_url", "swanlab_lark_secret", "swanlab_log_completions",
               "swanlab_completion_log_interval", "swanlab_completion_max_buffer", "use_otel_metrics",
               "otel_metrics_host", "otel_metrics_port"),
    **harmless("a page to try the model; see `luthier server start`", "gradio_title", "gradio_share",
               "gradio_server_name", "gradio_server_port", "gradio_max_new_tokens", "gradio_temperature"),
    **harmless("answers that are shown while training; see evaluation.sample_prompts", "generate_samples",
               "num_generation_samples", "generation_max_new_tokens", "generation_temperature", "generation_top_p",
               "generation_top_k", "generation_prompt_ratio", "generation_do_sample", "dpo_generate_during_eval",
               "trl.num_completions_to_print"),
    **harmless("parts of a model for images and sound are never trained", "processor_type", "processor_kwargs",
               "freeze_mm_modules"),
    **harmless("where results go; Luthier keeps them in its home", "output_dir", "hub_model_id", "hub_strategy",
               "push_dataset_to_hub", "dataset_prepared_path", "save_safetensors", "save_only_model",
               "saves_per_epoch", "save_strategy", "resume_from_checkpoint", "auto_resume_from_checkpoints",
               "save_first_step", "hf_use_auth_token", "dataset_keep_in_memory", "skip_prepare_dataset",
               "hub_revision", "num_dataset_shards_to_save", "tokenizer_save_jinja_files"),
    **harmless("how validation is computed and when; it does not change what is trained", "evals_per_epoch",
               "eval_strategy", "evaluation_strategy", "eval_sample_packing", "eval_table_size",
               "eval_max_new_tokens", "eval_sequence_len", "load_best_model_at_end", "metric_for_best_model",
               "greater_is_better", "do_causal_lm_eval", "do_bench_eval",
               "eval_causal_lm_metrics", "bench_dataset", "bench_split"),
    **harmless("a run ends by itself where its loss diverges", "loss_watchdog_threshold", "loss_watchdog_patience"),
    **harmless("class and tokenizer follow from the model's folder", "model_type", "tokenizer_type", "type_of_model",
               "is_llama_derived_model", "is_mistral_derived_model", "is_falcon_derived_model",
               "is_qwen_derived_model", "tokenizer_use_fast", "tokenizer_legacy", "strict"),
    **harmless("rows are shuffled at each epoch (training.batch_order)", "shuffle_merged_datasets",
               "shuffle_before_merging_datasets", "streaming"),
    **missing("texts of a block never see each other here", "pretrain_multipack_attn", off=(True,)),
    **harmless("code of a model is never run: a model that needs it is refused by `luthier plan`", "trust_remote_code"),
    **missing("a plug-in of axolotl; name in --allow-missing those that only speed up", "plugins", off=([],)),
    **missing("the last batch of an epoch is never left out", "dataloader_drop_last"),
    **missing("a reference model that moves", "trl.sync_ref_model", "trl.ref_model_mixup_alpha",
              "trl.ref_model_sync_steps"),
    **missing("it continues training an adapter", "lora_model_dir", off=("",)),
    **missing("adapters on some layers or parameters alone; see method.layers", "peft_layers_to_transform",
              "lora_rank_pattern", "lora_alpha_pattern",
              "peft_layer_replication", "peft_trainable_token_indices", off=(False, [], {})),
    **missing("the learning rate of a group of weights", "lr_groups", "embedding_lr", "embedding_lr_scale",
              "loraplus_lr_embedding", off=([],)),
    **missing("another course of the learning rate", "cosine_constant_lr_ratio", "lr_quadratic_warmup", off=(False, 0)),
    **missing("arguments of the optimizer; see training.optimizer in docs/recipe.md", "optim_args", off=({}, "")),
    **missing("weights are reset while training (ReLoRA)", "relora", "relora_steps", "relora_prune_ratio",
              "jagged_restart_steps", "jagged_restart_warmup_steps", "jagged_restart_anneal_steps", off=(False, 0)),
    **harmless("the machine, not what is trained", "relora_cpu_offload"),
    **missing("layers are trained in turn (LISA)", "lisa_n_layers", "lisa_step_interval", "lisa_layers_attribute",
              off=(0, "")),
    **missing("a training of another kind, with sections of its own", "ebft", "diffusion", "llmcompressor", off=({},)),
    **missing("a training with quantised weights (QAT)", "qat", "quantization"),
    **missing("another loss", "use_eaft", "dpo_use_weighting", "dpo_norm_loss"),
    **missing("axolotl itself refuses it; see objective.nll_weight", "rpo_alpha", off=(0,)),
    **missing("several losses of a pair; see objective.nll_weight for `sft` beside one", "dpo_loss_weights",
              off=([1], [])),
    "cpo_alpha": becomes("objective.name", note="simpo: 0; others are refused"),
    **missing("another head or trainer", "process_reward_model", "trainer_cls"),
    **missing("a system message for rows without one: write it into the rows", "default_system_message", off=("",)),
    **missing("a chat template of the file: put it into the model's folder", "chat_template_jinja", off=("",)),
    **missing("rows are left out by a rule; see `luthier data audit` and `data repair`", "min_sample_len",
              "dataset_exact_deduplication", off=(False, 0)),
    **missing("rows in the order of their difficulty", "curriculum_sampling"),
    **missing("sampling settings other than the temperature", "trl.top_p", "trl.top_k", "trl.min_p",
              "trl.repetition_penalty", off=(1.0, 0)),
    **missing("changes of the model's config", "overrides_of_model_config", "overrides_of_model_kwargs",
              "rope_scaling", off=({},)),
}  # fmt: skip

_ADAPTER: Final = AdapterKeys(
    ("adapter", "load_in_4bit", "load_in_8bit", "peft_use_dora", "peft_use_rslora", "peft_init_lora_weights",
     "loraplus_lr_ratio"),
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", None, None, 0.0, None, "lora_modules_to_save",
)  # fmt: skip


def prepared(given: dict[str, Any]) -> dict[str, Any]:
    """The keys of a file with the one dataset of a list as a section, and the old names of keys replaced."""
    renamed = {"noisy_embedding_alpha": "neftune_noise_alpha", "model_revision": "revision_of_model"}
    renamed["dpo_beta"] = "rl_beta"
    found = {renamed.get(key, key): value for key, value in given.items()}
    several = isinstance(found.get("datasets"), list) and len(found["datasets"]) > 1
    # Beside several datasets a test file has columns of its own, so that it stays a list.
    for key in ("datasets", "pretraining_dataset", *(() if several else ("test_datasets",))):
        rows = found.get(key)
        if isinstance(rows, list) and len(rows) == 1 and isinstance(rows[0], dict):
            found[key] = rows[0]
    return found


def translate(t: Translation) -> None:
    """Translate an axolotl file."""
    t.put_model(t.take("base_model", ""), "base_model", "revision_of_model")
    objective = _put_objective(t)
    if (plugins := t.given.get("plugins")) and _PLUGINS.issuperset(plugins):
        t.same("plugins", _KERNELS)
    put_datasets(t, objective)
    _put_template(t)
    _put_method(t)
    put_model_keys(t)
    if not t.has("context_parallel_size"):
        put_shared_devices(t, "tensor_parallel_size", "sequence_parallel_degree")
    else:
        # The older name of the same.
        t.take("sequence_parallel_degree")
        t.same("sequence_parallel_degree", "context_parallel_size takes its place")
        put_shared_devices(t, "tensor_parallel_size", "context_parallel_size")
    _put_training(t, objective)
    if objective == "grpo":
        drawn_losses.divide_steps(t, drawn_losses.num_updates(t, "trl."))
    drawn_losses.leave_out(t, "trl.", "no answers are drawn", has_delta=False)
    trackers.put_axolotl(t)


def _put_objective(t: Translation) -> str:
    if t.take("train_on_inputs", False):
        t.refuse("train_on_inputs", "prompts are never learned here; for plain texts use a column text")
    t.same("train_on_inputs", "answers alone are learned")
    rl = t.take("rl")
    if t.take("reward_model", False):
        _put_reward_model(t)
        return "rank"
    t.same("reward_model", "off")
    if rl is None:
        name = "pretraining" if t.has("pretraining_dataset.path") or t.has("pretraining_dataset") else "sft"
        t.recipe["objective.name"] = name
        return name
    if rl not in _OBJECTIVES:
        t.refuse("rl", f"known here: {', '.join(_OBJECTIVES)}", set_by="objective.name")
        return "dpo"
    t.put("objective.name", _OBJECTIVES[rl], "rl")
    if rl == "grpo":
        _put_grpo(t)
        return str(rl)
    beta_key = "orpo_alpha" if rl == "orpo" else "rl_beta"
    t.put("objective.beta", number(t.take(beta_key, 0.1)), beta_key, default=0.1)
    for key, place, names in (
        ("simpo_gamma", "objective.gamma", ("simpo",)),
        ("kto_desirable_weight", "objective.desirable_weight", ("kto",)),
        ("kto_undesirable_weight", "objective.undesirable_weight", ("kto",)),
    ):
        if rl in names and (value := t.take(key)) is not None:
            t.put(place, number(value), key)
    if rl == "dpo":
        pair_losses.put_pair_loss(t, "dpo_loss_type", "dpo_label_smoothing")
    if rl == "simpo":
        if not t.has("simpo_gamma"):
            t.refuse("simpo_gamma", "axolotl has no default for it", set_by="objective.gamma")
        if t.take("cpo_alpha", 1.0) == 0:
            t.put("objective.name", "simpo", "cpo_alpha")
        else:
            note = (
                "cross-entropy beside SimPO (1.0 by default), a mean over all tokens of a batch; only 0 has a "
                "counterpart: objective.nll_weight has the mean of each answer"
            )
            t.refuse("cpo_alpha", note, set_by="objective.nll_weight")
    return str(rl)


def _put_reward_model(t: Translation) -> None:
    t.put("objective.name", "rank", "reward_model")
    if t.take("num_labels", 1) == 1:
        t.put("objective.name", "rank", "num_labels", default=1)
    else:
        t.refuse("num_labels", "a reward model gives one number")
    if (weight := t.take("center_rewards_coefficient")) is not None:
        t.put("objective.center_rewards_coefficient", number(weight), "center_rewards_coefficient")


def _put_grpo(t: Translation) -> None:
    for key in ("trl.reward_funcs", "trl.reward_weights"):
        if t.take(key) is not None or key == "trl.reward_funcs":
            t.refuse(key, "rewards are functions of Python: name metrics or graders", set_by="objective.rewards")
    for key, place, default in (
        ("trl.num_generations", "objective.num_generations", 8),
        ("trl.max_completion_length", "objective.max_new_tokens", 512),
        ("trl.temperature", "objective.temperature", 1.0),
        ("trl.beta", "objective.kl_coef", 0.0),
        ("trl.scale_rewards", "objective.normalize_advantages", True),
    ):
        t.put(place, t.take(key, default), key, default=default)
    if t.take("trl.mask_truncated_completions", False):
        t.put("objective.mask_truncated", True, "trl.mask_truncated_completions")
    t.same("trl.mask_truncated_completions", "off")
    drawn_losses.put_drawn_loss(t, "trl.", has_delta=False)


def _put_template(t: Translation) -> None:
    put_template(t, "chat_template")
    if (options := t.take("chat_template_kwargs")) is not None:
        t.put("data.template_options", options, "chat_template_kwargs")
    if (share := t.take("val_set_size")) is None:
        return
    if share == 0:
        t.same("val_set_size", "no validation")
    elif share < 1:
        t.put("data.validation", float(share), "val_set_size")
    else:
        t.refuse("val_set_size", "a number of rows, and a recipe has a share of them", set_by="data.validation")


def _put_method(t: Translation) -> None:
    adapter = t.take("adapter")
    is_4bit, is_8bit = bool(t.take("load_in_4bit", adapter == "qlora")), bool(t.take("load_in_8bit", False))
    start = t.take("peft_init_lora_weights")
    ratio = t.take("loraplus_lr_ratio")
    if adapter is None:
        t.put("method.name", "full", "adapter", default="none")
        for key, is_on in (("load_in_4bit", is_4bit), ("load_in_8bit", is_8bit)):
            if not is_on:
                t.same(key, "off")
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear",
                    "lora_target_parameters", "lora_modules_to_save", "peft_use_dora", "peft_use_rslora",
                    "peft_init_lora_weights"):  # fmt: skip
            t.take(key)
            t.same(key, "no adapter is trained")
        return
    if adapter not in ("lora", "qlora"):
        t.refuse("adapter", "known here: lora, qlora", set_by="method.name")
        return
    if start not in (None, True, "pissa", "olora") and not str(start).startswith("pissa_niter_"):
        t.refuse("peft_init_lora_weights", "known here: pissa, olora")
    variants = {
        "dora": bool(t.take("peft_use_dora", False)),
        "rslora": bool(t.take("peft_use_rslora", False)),
        "pissa": str(start).startswith("pissa"),
        "olora": start == "olora",
        "loraplus": ratio is not None,
    }
    put_name(t, _ADAPTER.switches, is_4bit=is_4bit, is_8bit=is_8bit, variants=variants)
    if ratio is not None:
        t.put("method.learning_rate_ratio", number(ratio), "loraplus_lr_ratio")
    if t.take("lora_target_parameters"):
        note = (
            "experts have a rank of their own here, method.rank divided by the experts that a token meets: name them "
            "beside the other matrices, such as [q_proj, v_proj, experts]"
        )
        t.refuse("lora_target_parameters", note, set_by="method.targets")
    t.same("lora_target_parameters", "none")
    if t.take("lora_target_linear"):
        t.put("method.targets", "all-linear", "lora_target_linear", note=ALL_LINEAR)
        t.take("lora_target_modules")
        t.same("lora_target_modules", "all linear matrices are targets already")
        put_adapter_without_targets(t)
        return
    t.same("lora_target_linear", "off")
    put_adapter(t, _ADAPTER)


def put_adapter_without_targets(t: Translation) -> None:
    """Rank, alpha and dropout, where the targets are decided already."""
    for key, place in (("lora_r", "method.rank"), ("lora_alpha", "method.alpha")):
        if (value := t.take(key)) is None:
            t.refuse(key, "axolotl has no default for it", set_by=place)
        else:
            t.put(place, value if key == "lora_r" else float(value), key)
    t.put("method.dropout", float(t.take("lora_dropout", 0.0)), "lora_dropout", default=0.0)
    put_modules_to_save(t, "lora_modules_to_save")


def _put_training(t: Translation, objective: str) -> None:
    is_packed = bool(t.take("sample_packing", False)) and objective != "pretraining"
    keys = ("micro_batch_size", "gradient_accumulation_steps")
    unit = t.take("trl.num_generations", 8) if objective == "grpo" else 1
    rows, accumulation = t.take(keys[0], 1), t.take(keys[1], 1)
    if (size := t.take("batch_size")) is not None and not t.has(keys[1]):
        # As axolotl rounds it: whole micro-batches alone are accumulated.
        keys, accumulation = (keys[0], "batch_size"), size // rows
    length = t.take("sequence_len", 512)
    t.put("training.max_length_tokens", length, "sequence_len", default=512)
    packing = Packing("sample_packing", length if objective == "sft" else None) if is_packed else None
    put_batch(t, rows, accumulation, keys, packing, unit)
    t.same("sample_packing", "blocks are packed in any case" if objective == "pretraining" else "off")
    put_length(t, "num_epochs", "max_steps", 1.0)
    if (rate := t.take("learning_rate")) is None:
        t.refuse("learning_rate", "axolotl has no default for it", set_by="training.learning_rate")
    else:
        t.put("training.learning_rate", number(rate), "learning_rate")
    schedule = put_schedule(t, "lr_scheduler", "lr_scheduler_kwargs", "cosine", t.take("learning_rate", 1.0))
    if (ratio := number(t.take("cosine_min_lr_ratio"))) and schedule == "cosine":
        if ratio == 1:
            t.put("training.lr_schedule", "constant", "cosine_min_lr_ratio", note="the rate stays where it is")
        else:
            t.put("training.min_lr_ratio", ratio, "cosine_min_lr_ratio")
    t.same("cosine_min_lr_ratio", "off, or not with this schedule")
    is_ignored = schedule == "constant" and not warms_up_itself(t, "optimizer")
    put_warmup(t, "warmup_steps", "warmup_ratio", 0.03, is_ignored=is_ignored)
    put_optimizer(t, "optimizer", "adamw_torch_fused")
    put_decays(t, "weight_decay", "max_grad_norm", 0.0)
    for key, place in (
        ("adam_beta1", "training.optimizer.beta1"), ("adam_beta2", "training.optimizer.beta2"),
        ("adam_epsilon", "training.optimizer.epsilon"), ("neftune_noise_alpha", "training.neftune_alpha"),
        ("save_total_limit", "training.keep_checkpoints"), ("torch_compile", "training.compile"),
    ):  # fmt: skip
        if (value := t.take(key)) is not None:
            t.put(place, value if place == "training.keep_checkpoints" else number(value), key)
    if objective != "pretraining":
        put_choice(t, "training.on_overlong", _OVERLONG, "excess_length_strategy", "drop")
    order = "by_length" if t.take("group_by_length", False) else "shuffled"
    t.put("training.batch_order", order, "group_by_length", default=False)
    put_checkpointing(t, "gradient_checkpointing")
    put_precision(t, "bf16")
    put_fp8(t, "fp8")
    put_steps(t, "training.validate_every_steps", "eval_steps")
    put_steps(t, "training.checkpoint_every_steps", "save_steps")
    patience = t.take("early_stopping_patience", 0)
    t.put("training.early_stopping_patience", patience, "early_stopping_patience", default="off")
    t.put("training.seed", t.take("seed", 42), "seed", default=42)
