"""The arguments of `transformers.TrainingArguments`, which LLaMA-Factory, TRL and Unsloth share.

Names and defaults are those of transformers 5 (`warmup_ratio` is of version 4, and still written in many files).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final

from luthier.core.text.counted import counted
from luthier.features.recipes.imports.trackers import HF_KEYS, put_reports
from luthier.features.recipes.imports.translation import Key, Translation, becomes, harmless, missing

SCHEDULES: Final = {
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
OPTIMIZERS: Final = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_apex_fused": "adamw",
    "paged_adamw": "adamw",
    "paged_adamw_32bit": "adamw",
    "adamw_torch_4bit": "adamw_8bit",
    "adamw_torch_8bit": "adamw_8bit",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "lion": "lion",
    "lion_32bit": "lion",
    "lion_pytorch": "lion",
    "muon": "muon",
    "schedule_free_adamw": "schedule_free_adamw",
}
OPTIMIZER_NOTE: Final = "adamw_torch_4bit: adamw_8bit, whose state has 8 bits"
FP8_NOTE: Final = "true: bfloat16"
_LOGS = "what is logged"
_MACHINE = "the machine, not what is trained"
_OUTPUT = "where results go; Luthier keeps them in its home"

KEYS: Final[dict[str, Key]] = {
    "per_device_train_batch_size": becomes(
        "training.global_batch_size", note="times gradient_accumulation_steps, times devices (--devices)"
    ),
    "gradient_accumulation_steps": becomes("training.global_batch_size", note="a factor of it"),
    "num_train_epochs": becomes("training.epochs", note="left out where max_steps is given"),
    "max_steps": becomes("training.max_steps", note="-1 and 0: by epochs"),
    "learning_rate": becomes("training.learning_rate"),
    "lr_scheduler_type": becomes("training.lr_schedule", note="cosine, linear, constant; others are refused"),
    "lr_scheduler_kwargs": becomes(
        "training.min_lr_ratio", note="min_lr_rate, or min_lr as a share of the rate, of cosine_with_min_lr"
    ),
    "warmup_ratio": becomes("training.warmup_fraction"),
    "warmup_steps": becomes("training.warmup_steps", "training.warmup_fraction", note="below 1 it is a fraction"),
    "optim": becomes("training.optimizer.name", note=OPTIMIZER_NOTE),
    "weight_decay": becomes("training.weight_decay"),
    "max_grad_norm": becomes("training.max_grad_norm"),
    "adam_beta1": becomes("training.optimizer.beta1"),
    "adam_beta2": becomes("training.optimizer.beta2"),
    "adam_epsilon": becomes("training.optimizer.epsilon"),
    "seed": becomes("training.seed"),
    "neftune_noise_alpha": becomes("training.neftune_alpha"),
    "gradient_checkpointing": becomes("training.gradient_checkpointing"),
    "activation_checkpointing": becomes("training.gradient_checkpointing", note="its new name in transformers 5"),
    "bf16": becomes("training.precision", note="true: bfloat16; false and auto: auto"),
    "eval_steps": becomes("training.validate_every_steps", note="a fraction: ten a run"),
    "save_steps": becomes("training.checkpoint_every_steps", note="a fraction: every 50 steps"),
    "save_total_limit": becomes("training.keep_checkpoints"),
    "train_sampling_strategy": becomes("training.batch_order", note="random, group_by_length, sequential"),
    "group_by_length": becomes("training.batch_order", note="true: by_length"),
    "torch_compile": becomes("training.compile"),
    "label_smoothing_factor": becomes("objective.label_smoothing"),
    **harmless(
        _LOGS, "logging_steps", "logging_strategy", "logging_first_step", "logging_nan_inf_filter", "log_level",
        "disable_tqdm", "include_num_input_tokens_seen", "include_tokens_per_second", "debug", "log_level_replica",
        "log_on_each_node",
    ),
    **harmless("a Space is named by TRACKIO_SPACE_ID in the environment", "trackio_space_id", "trackio_static_space_id",
               "trackio_bucket_id"),
    **HF_KEYS,
    **harmless(
        _OUTPUT, "output_dir", "overwrite_output_dir", "save_only_model", "save_strategy", "save_safetensors",
        "push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo", "hub_always_push",
        "hub_revision", "hub_model_revision", "resume_from_checkpoint", "save_on_each_node", "enable_jit_checkpoint",
    ),
    **harmless(
        _MACHINE, "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor", "ddp_timeout", "ddp_backend", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
        "local_rank", "deepspeed", "fsdp", "fsdp_config", "fsdp_transformer_layer_cls_to_wrap", "tf32", "use_cpu",
        "gradient_checkpointing_kwargs", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps",
        "use_liger_kernel", "auto_find_batch_size", "accelerator_config", "use_cache", "skip_memory_metrics",
        "fp16_full_eval", "bf16_full_eval", "activation_offloading", "activation_checkpointing_kwargs",
        "liger_kernel_config", "dataloader_multiprocessing_context", "dataloader_in_order",
        "ddp_broadcast_buffers", "ddp_static_graph", "length_column_name",
    ),
    **missing(
        "devices that share rows are one copy: leave it out, and name the number of copies as --devices",
        "parallelism_config",
        off=({},),
    ),
    **harmless("Luthier computes in bfloat16 or float32, as measured on the machine (training.precision)", "fp16"),
    **harmless(
        "how validation is computed and when; it does not change what is trained", "eval_strategy",
        "evaluation_strategy", "per_device_eval_batch_size", "eval_accumulation_steps", "eval_delay", "eval_on_start",
        "prediction_loss_only", "batch_eval_metrics", "eval_packing", "do_train", "do_eval", "do_predict",
        "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_do_concat_batches",
        "eval_use_gather_object", "include_for_metrics",
    ),
    **harmless("a run that resumes continues as if it had not stopped", "ignore_data_skip",
               "restore_callback_states_from_checkpoint", "full_determinism"),
    **harmless("columns are chosen by data.columns", "remove_unused_columns", "no_remove_unused_columns",
               "label_names"),
    **missing("every token of a step counts the same, on all devices together", "average_tokens_across_devices",
              off=(True,)),
    **missing("the last batch of an epoch is never left out", "dataloader_drop_last"),
    **missing("arguments of the optimizer; see training.optimizer in docs/recipe.md", "optim_args", off=("", {})),
    **missing("gradients of some matrices in low rank (GaLore, APOLLO)", "optim_target_modules", off=([], "")),
    **missing("one seed decides both, training.seed", "data_seed", off=()),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Defaults:
    """The defaults of a trainer."""

    learning_rate: float = 5e-5
    num_rows: int = 8
    accumulation: int = 1
    epochs: float = 3.0
    schedule: str = "linear"
    warmup: float = 0.0
    optimizer: str = "adamw_torch_fused"
    weight_decay: float = 0.0
    seed: int = 42
    order: str = "random"


PACKING_NOTE: Final = "rows x accumulated x devices x the tokens of a sequence"


@dataclass(frozen=True, slots=True)
class Packing:
    """How a file packs rows into sequences.

    Attributes:
        key: The key that turns it on.
        sequence_tokens: Tokens of a sequence; None where the file does not say, or the objective does not pack.
        note: What else differs, behind the statement that rows do not see each other here.
    """

    key: str
    sequence_tokens: int | None
    note: str = ""


def put_training(
    t: Translation,
    defaults: Defaults,
    *,
    prefix: str = "",
    rows_per_unit: int = 1,
    packing: Packing | None = None,
) -> None:
    """Translate what all trainers share.

    Args:
        t: The translation, with the keys of the file.
        defaults: Of this trainer.
        prefix: Of the section that holds the arguments, with its full stop.
        rows_per_unit: By how much a batch is divided: answers to a prompt, of GRPO.
        packing: Where packing is on: then a batch counts sequences of several rows.
    """
    key = _prefixed(prefix)
    _put_batch(t, key("per_device_train_batch_size"), key("gradient_accumulation_steps"), defaults, rows_per_unit,
               packing)  # fmt: skip
    put_length(t, key("num_train_epochs"), key("max_steps"), defaults.epochs)
    rate = t.take(key("learning_rate"), defaults.learning_rate)
    t.put("training.learning_rate", number(rate), key("learning_rate"), default=defaults.learning_rate)
    schedule = put_schedule(t, key("lr_scheduler_type"), key("lr_scheduler_kwargs"), defaults.schedule, rate)
    is_ignored = schedule == "constant" and not warms_up_itself(t, key("optim"))
    put_warmup(t, key("warmup_steps"), key("warmup_ratio"), defaults.warmup, is_ignored=is_ignored)
    put_optimizer(t, key("optim"), defaults.optimizer)
    put_decays(t, key("weight_decay"), key("max_grad_norm"), defaults.weight_decay)
    for name in ("beta1", "beta2", "epsilon"):
        if (value := t.take(key(f"adam_{name}"))) is not None:
            t.put(f"training.optimizer.{name}", number(value), key(f"adam_{name}"))
    t.put("training.seed", t.take(key("seed"), defaults.seed), key("seed"), default=defaults.seed)
    _put_order(t, key("train_sampling_strategy"), key("group_by_length"), defaults.order)
    t.recipe["training.early_stopping_patience"] = 0
    _put_rest(t, prefix)


def number(value: Any) -> Any:
    """A number that YAML 1.1 reads as text, such as 2e-4, as a number; all else as it is."""
    try:
        return float(value) if isinstance(value, str | int) and not isinstance(value, bool) else value
    except ValueError:
        return value


def put_choice(t: Translation, place: str, known: dict[str, str], key: str, default: str) -> None:
    """Translate a choice by a table of names; others are refused unless the recipe's key is set.

    Args:
        t: The translation under way.
        place: The key of the recipe.
        known: Their name, in small letters -> ours.
        key: Their key.
        default: Their name where the file has no such key.
    """
    value = str(t.take(key, default)).lower()
    if value in known:
        t.put(place, known[value], key, default=default)
    else:
        t.refuse(key, f"there is no such choice here; known: {', '.join(known)}", set_by=place)


def put_schedule(t: Translation, key: str, settings_key: str, default: str, rate: Any) -> str:
    """The schedule of the learning rate, and where it ends; returns its name.

    Args:
        t: The translation under way.
        key: Their key for the name of the schedule.
        settings_key: Their key for its settings.
        default: Their name where the file has none.
        rate: The peak of the learning rate, which an absolute end is a share of.
    """
    name, settings = str(t.take(key, default)).lower(), t.take(settings_key) or {}
    values = {one: number(value) for one, value in settings.items()} if isinstance(settings, dict) else {}
    put_choice(t, "training.lr_schedule", SCHEDULES, key, default)
    place = "training.min_lr_ratio"
    if name == "cosine_with_min_lr" and values.keys() in ({"min_lr"}, {"min_lr_rate"}):
        ratio = values["min_lr_rate"] if "min_lr_rate" in values else values["min_lr"] / number(rate)
        t.put(place, ratio, settings_key)
    elif settings or name == "cosine_with_min_lr":
        note = "only min_lr_rate or min_lr of cosine_with_min_lr: other settings of a schedule have no counterpart"
        t.refuse(settings_key, note, set_by=place)
    else:
        t.same(settings_key, "off")
    return name


def warms_up_itself(t: Translation, key: str) -> bool:
    """Whether their optimizer takes the steps of the warm-up, too: then a constant schedule has one.

    Args:
        t: The translation under way.
        key: Their key for the optimizer.
    """
    return str(t.given.get(key)).lower() == "schedule_free_adamw"


def put_optimizer(t: Translation, key: str, default: str) -> None:
    """Translate the name of an optimizer; other trainers have one learning rate for all that Muon and AdamW update.

    Args:
        t: The translation under way.
        key: Their key.
        default: Their name where the file has no such key.
    """
    put_choice(t, "training.optimizer.name", OPTIMIZERS, key, default)
    if str(t.given.get(key)).lower() == "adamw_torch_4bit" and "training.optimizer.name" not in t.settled:
        t.note(
            f"{key}: the state of AdamW has 8 bits here and 4 there: its updates are more exact, and it takes a byte "
            "more for each weight that is trained, which the plan counts"
        )
    if t.recipe.get("training.optimizer.name") == "muon":
        t.put("training.optimizer.adamw_rate_factor", 1.0)


def put_length(t: Translation, epochs_key: str, steps_key: str, default: float) -> None:
    """Epochs, or steps in their place: with both, the other tools take the steps alone.

    Args:
        t: The translation under way.
        epochs_key: Their key for epochs.
        steps_key: Their key for steps; 0 or less means none.
        default: Their epochs where the file has neither.
    """
    steps, epochs = t.take(steps_key), t.take(epochs_key, default)
    if steps is not None and steps > 0:
        t.put("training.max_steps", steps, steps_key)
        t.same(epochs_key, "max_steps takes its place")
        return
    t.same(steps_key, "by epochs")
    t.put("training.epochs", float(epochs), epochs_key, default=default)


def put_warmup(t: Translation, steps_key: str, ratio_key: str, default: float, *, is_ignored: bool = False) -> None:
    """The warm-up: a number of steps, or a share of them.

    Args:
        t: The translation under way.
        steps_key: Their key for a number of steps, or for a share where it is below 1.
        ratio_key: Their key for a share of the steps.
        default: Their share where the file has neither.
        is_ignored: Whether their schedule has no warm-up.
    """
    steps, ratio = number(t.take(steps_key)), t.take(ratio_key)
    if "training.warmup_steps" in t.settled:
        t.put("training.warmup_steps", None, steps_key, ratio_key)
    elif is_ignored:
        for key in (steps_key, ratio_key):
            t.same(key, "the schedule constant has no warm-up")
        t.put("training.warmup_fraction", 0.0)
    elif steps is not None and steps > 0:
        t.same(ratio_key, f"{steps_key} takes its place")
        if steps < 1 or "training.warmup_fraction" in t.settled:
            t.put("training.warmup_fraction", float(steps), steps_key)
        else:
            t.put("training.warmup_steps", round(steps), steps_key)
    else:
        t.same(steps_key, "off")
        fraction = 0.0 if ratio is None and steps is not None else number(default if ratio is None else ratio)
        t.put("training.warmup_fraction", float(fraction), ratio_key, default=default)


def put_decays(t: Translation, decay_key: str, norm_key: str, default_decay: float) -> None:
    """Weight decay and the largest norm of the gradient.

    Args:
        t: The translation under way.
        decay_key: Their key for weight decay.
        norm_key: Their key for the largest norm; 0 turns clipping off.
        default_decay: Their weight decay where the file has none.
    """
    decay, norm = number(t.take(decay_key, default_decay)), number(t.take(norm_key, 1.0))
    t.put("training.weight_decay", float(decay), decay_key, default=default_decay)
    t.put("training.max_grad_norm", float(norm), norm_key, default=1.0)


def put_shared_devices(t: Translation, *keys: str) -> None:
    """Count the copies of the model in place of devices, before the batch is translated.

    Args:
        t: The translation under way, whose devices become copies.
        keys: Their keys for the devices that a copy is divided over, each a factor.
    """
    sizes = {key: int(t.take(key, 1)) for key in keys}
    num_shared = prod(max(1, size) for size in sizes.values())
    given = [key for key, size in sizes.items() if size > 1]
    if num_shared > 1 and t.num_devices % num_shared and t.num_devices != 1:
        came = f"{counted(t.num_devices, 'device')}, and a copy of the model takes {num_shared:,}: name all of them"
        t.refuse(given[0], came, set_by="training.global_batch_size")
    note = f"{num_shared:,} devices share their rows: they are one factor of the batch" if given else "off"
    for key in keys:
        t.same(key, note)
    t.num_devices = max(1, t.num_devices // num_shared)


def put_batch(
    t: Translation, rows: int, accumulation: int, keys: tuple[str, str], packing: Packing | None, unit: int
) -> None:
    """The batch of all devices and accumulated steps together.

    Args:
        t: The translation under way.
        rows: In the micro-batch of a device.
        accumulation: Micro-batches a step.
        keys: Their keys for these two.
        packing: Where the file turns it on; else None.
        unit: Their rows that are one of ours, such as the answers to one prompt.
    """
    size = rows * accumulation * t.num_devices
    how = f"{rows} rows x {accumulation} accumulated x {t.num_devices} devices"
    if packing and "training.global_batch_size" not in t.settled:
        _put_packed_batch(t, size, how, keys, packing)
        return
    if unit > 1:
        how += f" / {counted(unit, 'answer')} to a prompt"
        if size % unit:
            t.refuse(keys[0], f"{how} is not a whole number of prompts", set_by="training.global_batch_size")
            t.same(keys[1], "a factor of the batch")
            return
    t.put("training.global_batch_size", size // unit, *keys, note=how, default={keys[0]: rows, keys[1]: accumulation})
    if packing:
        t.put("training.global_batch_size", size // unit, packing.key)


def _put_packed_batch(t: Translation, size: int, how: str, keys: tuple[str, str], packing: Packing) -> None:
    """A batch of packed sequences as the tokens that they hold."""
    length = packing.sequence_tokens
    if not length:
        note = (
            f"with packing a step holds {counted(size, 'sequence')} of several rows each, and the tokens of a sequence "
            "are not known: give the batch in tokens (training.global_batch_tokens) or rows"
        )
        t.refuse(packing.key, note, set_by="training.global_batch_size")
        for key in keys:
            t.same(key, "settled together with the packing")
        return
    how = f"{how} x {counted(length, 'token')} of a packed sequence"
    t.put("training.global_batch_tokens", size * length, packing.key, *keys, note=how)
    if "training.global_batch_tokens" not in t.settled:
        t.note(
            f"{packing.key}: a step there sees {counted(size, 'sequence')} of up to {counted(length, 'token')}, filled "
            f"with rows; here it has as many rows as have {size * length:,} tokens on average "
            "(training.global_batch_tokens), without padding where that pays (training.packing). Rows never see each "
            f"other{packing.note}"
        )


def _put_batch(
    t: Translation, rows_key: str, steps_key: str, defaults: Defaults, unit: int, packing: Packing | None
) -> None:
    rows, accumulation = t.take(rows_key, defaults.num_rows), t.take(steps_key, defaults.accumulation)
    put_batch(t, rows, accumulation, (rows_key, steps_key), packing, unit)


def _put_order(t: Translation, key: str, old_key: str, default: str) -> None:
    names = {"random": "shuffled", "group_by_length": "by_length", "sequential": "as_given"}
    if t.take(old_key) is not None:
        t.put("training.batch_order", "by_length" if t.take(old_key) else "shuffled", old_key)
        t.take(key)
        t.same(key, f"{old_key} takes its place")
        return
    put_choice(t, "training.batch_order", names, key, default)


def _put_rest(t: Translation, prefix: str) -> None:
    """Keys that are written only where the file has them."""
    key = _prefixed(prefix)
    put_reports(t, prefix)
    put_checkpointing(t, key("gradient_checkpointing"))
    put_checkpointing(t, key("activation_checkpointing"))
    put_precision(t, key("bf16"))
    put_steps(t, "training.validate_every_steps", key("eval_steps"))
    put_steps(t, "training.checkpoint_every_steps", key("save_steps"))
    for name, place in (
        ("save_total_limit", "training.keep_checkpoints"),
        ("neftune_noise_alpha", "training.neftune_alpha"),
        ("torch_compile", "training.compile"),
        ("label_smoothing_factor", "objective.label_smoothing"),
    ):
        if (value := t.take(key(name))) is not None:
            t.put(place, number(value) if "alpha" in place or "smoothing" in place else value, key(name))


def put_checkpointing(t: Translation, key: str) -> None:
    """Whether activations are computed again; other kinds of it than on and off are on."""
    if (value := t.take(key)) is not None:
        t.put("training.gradient_checkpointing", value if isinstance(value, bool) else True, key)


def put_precision(t: Translation, key: str) -> None:
    """bfloat16 where it is asked for."""
    if (value := t.take(key)) is not None:
        t.put("training.precision", "bfloat16" if value in (True, "full") else "auto", key)


def put_fp8(t: Translation, key: str) -> None:
    """Products of matrices in 8 bits, which are computed in bfloat16 here.

    Args:
        t: The translation under way, with the precision of its other keys.
        key: Their key.
    """
    if t.take(key, False):
        t.put("training.precision", "bfloat16", key)
        t.note(
            f"{key}: matrices are multiplied in bfloat16 here and in 8 bits there, which is more exact and may be "
            "slower"
        )
    t.same(key, "off")


def put_steps(t: Translation, place: str, key: str) -> None:
    """A number of steps; a fraction of the run does not change what is trained."""
    value = t.take(key)
    if value is None:
        return
    if isinstance(value, int) and value >= 1:
        t.put(place, value, key)
    else:
        t.same(key, "a fraction of the run: Luthier's own default is taken, which does not change what is trained")


def _prefixed(prefix: str) -> Any:
    return lambda name: f"{prefix}{name}"
