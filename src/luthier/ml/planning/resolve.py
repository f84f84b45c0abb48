"""Recipe -> plan: every value gets decided here, once, with its source and the reason."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

from luthier.core.dataset import DatasetProfile, Overlong
from luthier.core.errors import RecipeError
from luthier.core.evaluation_plan import EvaluationPlan, EvaluationRecipe, MetricName
from luthier.core.plan import DataPlan, MethodPlan, ModelPlan, ObjectivePlan, Plan, TeacherPlan, TrainingPlan
from luthier.core.recipe import Recipe, TrainingRecipe
from luthier.core.records.base_model import LocalModel
from luthier.core.task_head import TaskHead
from luthier.ml.inference.models.structure import Structure
from luthier.ml.inference.models.templates.thinking import AnswerLengths
from luthier.ml.planning import defaults, resolve_for_device
from luthier.ml.planning.adapter import refuse_adapted_head, refuse_idle_head
from luthier.ml.planning.batch_shapes import num_replayed, resolve_batch_size
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.learning_rates import rate_of_run, usual_schedule
from luthier.ml.planning.resolve_for_device import (
    accelerated,
    attention_on,
    experts_do_not_fit,
    packs,
    side_by_side,
    usual_order,
)
from luthier.ml.planning.resolve_method import resolve_method, virtual_tokens, with_schedule
from luthier.ml.planning.resolve_objective import (
    check_negatives,
    fitted_method,
    judged_by_head,
    noise_on_embeddings,
    resolve_objective,
    with_router_loss,
    with_task_head,
)
from luthier.ml.planning.resolve_optimizer import min_lr_ratio, num_warmup_steps, resolve_average, resolve_optimizer
from luthier.ml.training.objectives.rules import rows_of_unit, rules_of

if TYPE_CHECKING:
    from luthier.ml.planning.hardware import Hardware

_SECTIONS = tuple(Plan.model_fields)


def room_tokens(recipe: Recipe, context_length_tokens: int) -> int:
    """The longest row that fits behind a trained prompt. Raises RecipeError where that leaves no room."""
    room = context_length_tokens - virtual_tokens(recipe.method)
    # One token to read and one to predict are the least that a text can be.
    if room < 2:
        raise RecipeError(
            f"method.num_virtual_tokens is {virtual_tokens(recipe.method)} in a context of {context_length_tokens:,}",
            expected="room for a text after the trained prompt",
            do="lower method.num_virtual_tokens",
        )
    return room


def max_length_tokens(recipe: Recipe, context_length_tokens: int, head: TaskHead | None = None) -> int:
    """The longest row that training takes: asked (RecipeError beyond the context), or what context and head read."""
    context_length_tokens = room_tokens(recipe, context_length_tokens)
    asked = recipe.training.max_length_tokens if recipe.training else None
    if asked is not None and asked > context_length_tokens:
        raise RecipeError(
            f"training.max_length_tokens {asked:,}, but {recipe.base_model} has a context of {context_length_tokens:,}",
            expected=f"at most {context_length_tokens:,} tokens",
            do="lower training.max_length_tokens, or choose a base model with a longer context",
        )
    # A whole context as block would take much memory for little: texts continue in the next block anyway.
    if asked is None and fills_blocks(recipe):
        return min(context_length_tokens, defaults.BLOCK_TOKENS[0])
    if asked is None and head is not None and head.max_tokens is not None:
        return min(context_length_tokens, head.max_tokens + 1)  # with the slot behind the text
    return context_length_tokens if asked is None else asked


def fills_blocks(recipe: Recipe) -> bool:
    """Whether the texts of a recipe are cut and filled into blocks."""
    return recipe.objective is not None and rules_of(recipe.objective.name).packs


def resolve(
    recipe: Recipe,
    *,
    model: LocalModel,
    template: Literal["chat", "plain"],
    template_sha256: str,
    data: DataPlan,
    structure: Structure,
    hardware: Hardware,
    has_text_answers: bool = True,
    are_pairs: bool = False,
    num_shots: int | None = None,
    teacher: TeacherPlan | None = None,
    answers: AnswerLengths | None = None,
    task_head: TaskHead | None = None,
    task_head_notes: tuple[str, ...] = (),
    num_processes: int = 1,
) -> Plan:
    """The complete plan of a recipe on this machine.

    Args:
        recipe, model, data: the request, the base model, and the data part of the plan.
        template, template_sha256: whether the chat template or plain text is used, and the digest of the template.
        structure, hardware: of the base model, and of this machine.
        has_text_answers: whether the rows that are evaluated have prompts and answers as text.
        are_pairs: whether they are preference pairs.
        num_shots: training rows that could be few-shot examples; None where that is not known.
        teacher: who the objective learns from, where it does.
        answers: how long the answers and thoughts of the rows are that are evaluated; None where that is not known.
        task_head: what the model gets in place of text, by the training rows.
        task_head_notes: what a person should know of how these were read.
        num_processes: that share each step.

    Raises:
        RecipeError: values that cannot go together.
    """
    # In the order in which `_evaluation` takes them.
    judged, heads = (has_text_answers, are_pairs, num_shots), (task_head, task_head_notes)
    made = partial(
        _resolved, recipe, model, template, template_sha256, data, structure, hardware, judged, teacher, answers, heads
    )
    # Twice at most: whether adapters on experts fit is only known of a complete plan.
    plan = made(why_no_experts="", num_processes=num_processes)
    if why := experts_do_not_fit(plan, structure, hardware):
        plan = made(why_no_experts=why, num_processes=num_processes)
    # Last: whether compiling pays depends on the whole plan.
    return accelerated(plan, structure, hardware)


def _resolved(
    recipe: Recipe,
    model: LocalModel,
    template: Literal["chat", "plain"],
    template_sha256: str,
    data: DataPlan,
    structure: Structure,
    hardware: Hardware,
    judged: tuple[bool, bool, int | None],
    teacher: TeacherPlan | None,
    answers: AnswerLengths | None,
    heads: tuple[TaskHead | None, tuple[str, ...]],
    *,
    why_no_experts: str,
    num_processes: int,
) -> Plan:
    """The plan except for compiling. why_no_experts: why groups leave experts out; empty where they do not."""
    sources = Provenance()
    _note_base(recipe, template, sources)
    # Notes are made in any order; `in_order` sorts them by the sections of the plan.
    _note_rows(data, sources)
    asked_method = fitted_method(recipe.method, recipe.objective)
    method = resolve_method(asked_method, structure, hardware.device, sources, why_no_experts=why_no_experts)
    if asked_method is not recipe.method:
        sources.note("method.dropout", "derived", "answers are sampled without dropout, and learned as sampled")
        if recipe.method is None:
            # The recipe that was fitted names a method, so it would pass as asked.
            sources.note("method.name", "default", "trains a small share of the weights at nearly full quality")
    objective = resolve_objective(recipe.objective, data.train.shape, sources, teacher=teacher)
    objective = with_router_loss(objective, recipe.objective, method, structure, model.path, sources)
    objective = with_task_head(objective, *heads, sources)
    refuse_adapted_head(structure, method.targets, objective.name)
    refuse_idle_head(structure, method.modules_to_save, objective)
    method = _without_noise(method, objective, sources)
    training = _training(
        recipe, method, objective, model, structure.hidden_size, data, hardware, sources, num_processes
    )
    check_negatives(objective, data.train, training.global_batch_size)
    asked = recipe.evaluation or EvaluationRecipe()
    evaluation = judged_by_head(_evaluation(asked, data, *judged, sources), asked, objective, sources)
    evaluation = _with_samples(evaluation, asked, data, objective, sources)
    # After the training part, from which the number of steps comes.
    method = with_schedule(method, asked_method, training.num_steps, sources)
    plan = Plan(
        recipe=recipe,
        base_model=ModelPlan(
            name=model.name,
            path=model.path,
            sha256=model.sha256,
            num_parameters=model.num_parameters,
            num_embedding_parameters=model.num_embedding_parameters,
            context_length_tokens=model.context_length_tokens,
            template=template,
            template_sha256=template_sha256,
        ),
        data=data,
        method=method,
        objective=objective,
        training=training,
        evaluation=evaluation.model_copy(update=_budgets(asked, data, answers, model, sources)),
        sources=sources.in_order(_SECTIONS),
    )
    plan = resolve_for_device.without_workers_if_memory_is_short(plan, structure, hardware)
    plan = resolve_for_device.with_judging_workers(plan, structure, hardware)
    return resolve_for_device.decided_for(plan, structure, hardware)


def _note_base(recipe: Recipe, template: Literal["chat", "plain"], sources: Provenance) -> None:
    """Where the base model and its template come from."""
    sources.note("base_model.name", "asked", "in the recipe")
    sources.note("base_model.sha256", "measured", "digest of the weight files")
    asked = recipe.data.template not in (None, "auto")
    why = "in the recipe" if asked else f"the tokenizer has {'a' if template == 'chat' else 'no'} chat template"
    sources.note("base_model.template", "asked" if asked else "derived", why)


def _note_rows(data: DataPlan, sources: Provenance) -> None:
    """The sources of what is done with the rows, where it is not the default."""
    if data.template_options:
        sources.note("data.template_options", "asked", "the chat template gets these, in training and in evaluation")
    if data.template_day is not None:
        why = "the chat template writes the date: the same one in training, evaluation and serving, on every day"
        sources.note("data.template_day", "default", why)
    for name in ("learn_reasoning", "reasoning", "system", "tools"):
        if getattr(data, name) is not None:
            sources.note(f"data.{name}", "asked", "in the recipe")
    if data.reset_template is not None:
        sources.note("data.reset_template", "asked", _why_joined(data))
    if data.canaries is not None:
        sources.note(
            "data.canaries", "asked", "made-up secrets planted among the training rows, to measure memorisation"
        )


def _why_joined(data: DataPlan) -> str:
    """What data.reset_template makes of the training rows."""
    num, of = data.train.num_joined, data.train.num_examples
    if not num:
        return "in the recipe, and without effect: the template needs one sequence a row, or the rows have one answer"
    return f"the answers of {num:,} of {of:,} training rows are joined into one sequence each; held-out rows are not"


def _without_noise(method: MethodPlan, objective: ObjectivePlan, sources: Provenance) -> MethodPlan:
    """No dropout where it is not requested and log-probabilities are compared with those of a model without any."""
    found = sources.found.get("method.dropout")
    if not objective.learns_preferences or not method.dropout or found is None or found.source == "asked":
        return method
    why = "rewards are differences of log-probabilities, to which dropout only adds noise"
    sources.note("method.dropout", "derived", why)
    return method.model_copy(update={"dropout": 0.0})


def _training(
    recipe: Recipe,
    method: MethodPlan,
    objective: ObjectivePlan,
    model: LocalModel,
    hidden_size: int,
    data: DataPlan,
    hardware: Hardware,
    sources: Provenance,
    num_processes: int,
) -> TrainingPlan:
    r, pick = recipe.training or TrainingRecipe(), sources.pick
    batch = resolve_batch_size(recipe, method, objective, data, hardware.device, sources, num_processes=num_processes)
    per_epoch = math.ceil(data.train.num_examples / (batch - num_replayed(data, objective)))  # replay takes places
    epochs, steps = _length(r, per_epoch, sources)
    rule = r.optimizer.name if r.optimizer else "adamw"
    rate = rate_of_run(method, objective, data, hidden_size, num_steps=steps, batch_size=batch, optimizer=rule)
    warmup = num_warmup_steps(r, steps, sources)
    why_length = defaults.why_length(objective.task_head, is_packed=bool(data.train.packed))
    length = max_length_tokens(recipe, model.context_length_tokens, objective.task_head)
    pick("training.max_length_tokens", r.max_length_tokens, (length, why_length))
    is_measured = r.precision in (None, "auto")
    precision = hardware.precision if is_measured else r.precision
    sources.note("training.precision", *(("measured", hardware.why) if is_measured else ("asked", "in the recipe")))
    packing = packs(r.packing, hardware, sources)
    sources.note("training.device", "measured", ", ".join(hardware.accelerators) or hardware.cpu_name)
    sources.note("training.forward", "default", "the fast path: each part of it is proved when the model is loaded")
    threads = pick("training.num_threads", r.num_threads, (hardware.num_threads, hardware.threads_why))
    workers, pieces = side_by_side(r, objective, data, hardware, threads, batch, sources)
    every = defaults.CHECKPOINT_EVERY_STEPS
    return TrainingPlan(
        num_steps=steps,
        num_steps_per_epoch=per_epoch,
        num_warmup_steps=warmup,
        epochs=epochs,
        global_batch_size=batch,
        micro_batch_tokens=_micro_batch_tokens(r, data.train, objective, batch, hardware, sources),
        min_micro_batches=pieces,
        micro_batch_workers=workers,
        optimizer=resolve_optimizer(r.optimizer, method.name, hardware.device, batch, sources),
        learning_rate=pick("training.learning_rate", r.learning_rate, rate),
        schedule=pick("training.schedule", r.schedule, usual_schedule(rule)),
        min_lr_ratio=min_lr_ratio(r, rule, sources),
        weight_decay=pick("training.weight_decay", r.weight_decay, defaults.WEIGHT_DECAY),
        clip_gradient_norm=pick("training.clip_gradient_norm", r.clip_gradient_norm, defaults.CLIP_GRADIENT_NORM),
        neftune_alpha=noise_on_embeddings(r.neftune_alpha, objective, sources),
        average=resolve_average(r.average, method.name, steps, sources, rule),
        max_length_tokens=length,
        overlong=_overlong(r, data.train, sources),
        order=pick("training.order", r.order, usual_order(objective, is_packed=packing)),
        precision=precision,
        attention=attention_on(hardware, sources),
        gradient_checkpointing=_checkpointing(r, sources),
        shared_prefix=pick("training.shared_prefix", r.shared_prefix, defaults.SHARED_PREFIX),
        packing=packing,
        sharding=pick("training.sharding", r.sharding, defaults.SHARDING),
        device=hardware.device,
        validate_every_steps=_validate_every(r, steps, data.validation, sources),
        checkpoint_every_steps=pick("training.checkpoint_every_steps", r.checkpoint_every_steps, every),
        keep_checkpoints=pick("training.keep_checkpoints", r.keep_checkpoints, defaults.KEEP_CHECKPOINTS),
        early_stopping_patience=_early_stopping(r, data.validation, sources),
        num_threads=threads,
        seed=pick("training.seed", r.seed, defaults.SEED),
    )


def _checkpointing(recipe: TrainingRecipe, sources: Provenance) -> bool:
    """Left open, it is False here: `resolve_for_device` decides once all else is known."""
    asked = None if recipe.gradient_checkpointing == "auto" else recipe.gradient_checkpointing
    return sources.pick(resolve_for_device.CHECKPOINTING, asked, (False, ""))


def _length(recipe: TrainingRecipe, steps_per_epoch: int, sources: Provenance) -> tuple[float, int]:
    """Epochs and optimizer steps: `max_steps` where it is given without `epochs`, else whichever is shorter."""
    if recipe.max_steps is not None and recipe.epochs is None:
        sources.note("training.num_steps", "asked", "training.max_steps in the recipe")
        return recipe.max_steps / steps_per_epoch, recipe.max_steps
    epochs = sources.pick("training.epochs", recipe.epochs, defaults.EPOCHS)
    # Rounding must not add a step: 1.1 x 10 is 11.000000000000002.
    steps = max(1, math.ceil(epochs * steps_per_epoch - 1e-9))
    if recipe.max_steps is not None and recipe.max_steps < steps:
        sources.note("training.num_steps", "asked", f"training.max_steps, less than the {steps} of {epochs:g} epochs")
        return epochs, recipe.max_steps
    sources.note(
        "training.num_steps",
        "derived",
        f"one epoch of {steps_per_epoch} steps" if epochs == 1 else f"{epochs:g} epochs of {steps_per_epoch} steps",
    )
    return epochs, steps


def _micro_batch_tokens(
    recipe: TrainingRecipe,
    train: DatasetProfile,
    objective: ObjectivePlan,
    batch: int,
    hardware: Hardware,
    sources: Provenance,
) -> int:
    on_cpu = hardware.device == "cpu"
    least, step_tokens = defaults.CUT_STEP_TOKENS
    num = batch * rows_of_unit(objective.name, train) * train.mean_tokens
    is_cut = objective.name == "embed" and num > step_tokens and train.max_tokens <= least
    if on_cpu and is_cut and recipe.micro_batch_tokens is None:
        sources.note("training.micro_batch_tokens", "derived", defaults.CUT_STEP_REASON)
        return least
    usual = defaults.MICRO_BATCH_TOKENS_CPU if on_cpu else defaults.MICRO_BATCH_TOKENS_GPU
    why = f"fastest per token for the memory on {hardware.device} (docs/benchmarks.md)"
    if train.max_tokens > usual:
        # A micro-batch holds whole rows, so it must have room for the longest.
        usual, why = train.max_tokens, f"the longest row has {train.max_tokens:,} tokens"
    if train.packed is not None and train.packed.block_tokens > usual:
        usual, why = train.packed.block_tokens, f"a block has up to {train.packed.block_tokens:,} tokens"
    return sources.pick("training.micro_batch_tokens", recipe.micro_batch_tokens, (usual, why))


def _overlong(recipe: TrainingRecipe, train: DatasetProfile, sources: Provenance) -> Overlong:
    if train.packed is None:
        return sources.pick("training.overlong", recipe.overlong, defaults.OVERLONG)
    if recipe.overlong is not None:
        raise RecipeError(
            f"training.on_overlong {recipe.overlong} with an objective that cuts texts into blocks",
            expected="no such setting: a text longer than a block continues in the next one, and nothing is lost",
            do="remove training.on_overlong; training.max_length_tokens is the size of a block",
        )
    sources.note("training.overlong", "derived", "a text longer than a block continues in the next: nothing is lost")
    return defaults.OVERLONG[0]


def _validate_every(recipe: TrainingRecipe, steps: int, validation: DatasetProfile | None, sources: Provenance) -> int:
    if validation is None:
        _refuse_without_validation("validate_every_steps", recipe.validate_every_steps)
        sources.note("training.validate_every_steps", "derived", "never: the recipe names no validation rows")
        return 0
    # At least one step apart, also in a run of fewer steps than validations.
    usual = max(1, math.ceil(steps / defaults.NUM_VALIDATIONS))
    return sources.pick(
        "training.validate_every_steps", recipe.validate_every_steps, (usual, f"{defaults.NUM_VALIDATIONS} times a run")
    )


def _early_stopping(recipe: TrainingRecipe, validation: DatasetProfile | None, sources: Provenance) -> int:
    if validation is None:
        _refuse_without_validation("early_stopping_patience", recipe.early_stopping_patience)
        sources.note("training.early_stopping_patience", "derived", "off: the recipe names no validation rows")
        return 0
    return sources.pick("training.early_stopping_patience", recipe.early_stopping_patience, defaults.PATIENCE)


def _refuse_without_validation(name: str, value: int | None) -> None:
    if value:
        raise RecipeError(
            f"training.{name} is {value}, but the recipe names no validation rows",
            expected="data.validation: a file, or a fraction such as 0.1 to take from the training rows",
            do=f"add data.validation, or remove training.{name}",
        )


def _evaluation(
    r: EvaluationRecipe,
    data: DataPlan,
    has_text_answers: bool,
    are_pairs: bool,
    num_shots: int | None,
    sources: Provenance,
) -> EvaluationPlan:
    pick = sources.pick
    few_shot = pick("evaluation.few_shot", r.few_shot, defaults.FEW_SHOT)
    samples = pick("evaluation.max_samples", r.max_samples, defaults.MAX_SAMPLES)
    # The bar itself needs the rows that are evaluated; it is put into the plan where these are read.
    pick("evaluation.good_enough", r.good_enough, (None, "no figure was requested"))
    plain = data.train.shape == "text"
    # The usual metrics depend on the rows: plain text has no answers to compare, pairs have two.
    usual: tuple[tuple[MetricName, ...], str]
    usual = defaults.METRICS if has_text_answers and not plain else defaults.LIKELIHOOD_METRICS
    if are_pairs:
        usual = defaults.PREFERENCE_METRICS
    metrics = pick("evaluation.metrics", r.metrics, usual)
    if r.metrics is None and usual is not defaults.METRICS:
        sources.note("evaluation.metrics", "derived", usual[1])
    if r.few_shot is None and plain:
        few_shot = 0
        sources.note("evaluation.few_shot", "derived", "plain text has no prompt to put examples into")
    elif r.few_shot is None and are_pairs:
        few_shot = 0
        sources.note("evaluation.few_shot", "derived", "examples of answers do not show which of two is better")
    elif r.few_shot is None and num_shots is not None and num_shots < few_shot:
        few_shot = num_shots
        sources.note("evaluation.few_shot", "derived", f"only {num_shots} training rows can be shown as examples")
    _refuse_without_examples(r, few_shot)
    # What is put into prompts needs the rows; it is decided where these are read (prompt_variants).
    for name in defaults.PROMPT_VARIANTS:
        sources.note(f"evaluation.{name}", "default", "off: no held-out rows whose answers are compared as text")
    sources.note("evaluation.num_scored_labels", "default", "off: no held-out rows whose answers are labels")
    sources.note("evaluation.num_workers", "default", "no held-out rows: nothing is evaluated")
    return EvaluationPlan(
        metrics=metrics,
        few_shot=few_shot,
        max_new_tokens=defaults.MAX_NEW_TOKENS[0],
        max_samples=samples,
        # Whether it can be evaluated on these rows is checked where they are read.
        reference_run=pick("evaluation.reference_run", r.reference_run, (None, "no earlier run is named")),
    )


def _with_samples(
    plan: EvaluationPlan, r: EvaluationRecipe, data: DataPlan, objective: ObjectivePlan, sources: Provenance
) -> EvaluationPlan:
    """With the number of validation rows that are answered at each checkpoint."""
    number = sources.pick("evaluation.sample_prompts", r.sample_prompts, defaults.SAMPLE_PROMPTS)
    has_prompts = data.validation is not None and data.train.shape != "text" and objective.task_head is None
    if number and not has_prompts:
        raise RecipeError(
            f"evaluation.sample_prompts is {number}, but no validation rows have prompts that are answered with text",
            expected="data.validation, and rows with prompts and written answers",
            do="add data.validation, or remove evaluation.sample_prompts",
        )
    return plan.model_copy(update={"sample_prompts": number})


def _refuse_without_examples(r: EvaluationRecipe, few_shot: int) -> None:
    asked = [name for name in ("few_shot_draws", "few_shot_nearest") if getattr(r, name) not in (None, False, "auto")]
    if asked and not few_shot:
        raise RecipeError(
            f"evaluation.{asked[0]} is {getattr(r, asked[0])}, and no examples are put into prompts",
            expected="evaluation.few_shot: a number of examples, and held-out rows with prompts and answers",
            do=f"set evaluation.few_shot, or remove evaluation.{asked[0]}",
        )


def _budgets(
    r: EvaluationRecipe, data: DataPlan, answers: AnswerLengths | None, model: LocalModel, sources: Provenance
) -> dict[str, int]:
    """What an answer may take, and a thought before it, in tokens: asked, or from the lengths of the rows' own."""
    usual, longest = defaults.MAX_NEW_TOKENS, 0 if data.held_out is None else data.held_out.max_tokens
    if answers is not None and answers.max_new_tokens > usual[0]:
        # An answer cannot be longer than the context.
        most = min(answers.max_new_tokens, model.context_length_tokens)
        usual = (most, f"the longest answer of the rows has {answers.longest_answer:,} tokens")
    new = sources.pick("evaluation.max_new_tokens", r.max_new_tokens, usual)
    if r.max_new_tokens is None and usual is not defaults.MAX_NEW_TOKENS:
        sources.note("evaluation.max_new_tokens", "derived", usual[1])
    asked, auto = r.max_thinking_tokens, 0 if answers is None else answers.max_thinking_tokens
    if asked is not None:
        sources.note("evaluation.max_thinking_tokens", "asked", "in the recipe")
    else:
        why = "the model thinks before it answers" if auto else "neither the chat template nor the rows have thoughts"
        if answers is not None and answers.longest_thought:
            why = f"the longest thought of the rows has {answers.longest_thought:,} tokens"
        sources.note("evaluation.max_thinking_tokens", "derived", why)
    room = max(0, model.context_length_tokens - longest - new)
    # The requested value is kept even where it exceeds the room: a later error names it.
    return {"max_new_tokens": new, "max_thinking_tokens": min(auto, room) if asked is None else asked}
