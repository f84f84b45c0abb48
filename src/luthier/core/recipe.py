"""The recipe: the request of the user, and nothing else. Every field that was not set is None here.

Defaults live in `ml/planning/defaults.py` and in the rules of methods, objectives and optimizers, with reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from luthier.core.data_sources import JudgingRows, SourceRecipe, TrainingRows
from luthier.core.data_stream import MAX_SHUFFLE_BUFFER
from luthier.core.dataset import Overlong
from luthier.core.evaluation_plan import EvaluationRecipe
from luthier.core.frozen_model import FrozenModel
from luthier.core.graders import Reward
from luthier.core.registry import METHODS, OBJECTIVES, OPTIMIZERS
from luthier.core.task_head import Pooling
from luthier.core.tracking import Tracking

MethodName = Annotated[str, AfterValidator(METHODS.validated), Field(json_schema_extra=METHODS.add_names)]
ObjectiveName = Annotated[str, AfterValidator(OBJECTIVES.validated), Field(json_schema_extra=OBJECTIVES.add_names)]
OptimizerName = Annotated[str, AfterValidator(OPTIMIZERS.validated), Field(json_schema_extra=OPTIMIZERS.add_names)]
NllTokens = Literal["all", "answer"]
Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
QuantisationName = Literal["auto", "nf4", "int8", "bfloat16"]
ScheduleName = Literal["cosine", "linear", "constant"]
OrderName = Literal["by_length", "shuffled", "as_given"]
LossWeighting = Literal["token", "sample", "fixed", "dft"]
PairLoss = Literal[
    "sigmoid", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "sigmoid_norm",
]  # fmt: skip
"""Losses of DPO, by the names that TRL has for them."""
ClassWeights = Literal["none", "balanced"]
TemplateName = Literal["auto", "chat", "plain"]
TemplateOption = bool | int | float | str
"""A value that a chat template is given with the conversation."""
AverageKind = Literal["ema", "uniform"]
Switch = Literal["auto"] | bool
PrecisionName = Literal["auto", "float32", "bfloat16"]
ShardingName = Literal["auto", "ddp", "fsdp"]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class ReplayRecipe(FrozenModel):
    """General rows in addition to those of the task.

    Attributes:
        file: general rows, in any shape that training takes.
        fraction: their share of each step; 0 trains on none of them.
        held_out: general rows, never trained on, a file or a fraction of `file`: they measure what was forgotten.
        map: as that of the data.
    """

    file: str
    fraction: Fraction | None = None
    held_out: str | OpenFraction | None = None
    map: dict[str, str] | None = None


class CanariesRecipe(FrozenModel):
    """Made-up secrets that are planted among the training rows, to measure what a model memorises of them.

    A number alone, `canaries: 8`, is their count.

    Attributes:
        num: how many.
        seed: decides which ones.
    """

    num: Annotated[int, Field(ge=1, le=1000)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="before")
    @classmethod
    def _plain_number(cls, given: Any) -> Any:
        # bool is a subclass of int: `canaries: true` must stay an error.
        return {"num": given} if isinstance(given, int) and not isinstance(given, bool) else given


class DataRecipe(FrozenModel):
    """Which rows. Every field but `train` may be left out.

    Attributes:
        train: a file of training rows, a remote source, or a list of sources.
        validation: as `train` without weights, or a fraction to take out of `train`; steers training.
        held_out: as `train` without weights, or a fraction to take out of `train`; judges once, at the end.
        map: field of the shape to field of the file.
        group_by: a field whose equal values never part when fractions are taken; None: the document that rows name.
        part: train on a share of the training rows alone, [from, to) of them in the order of a stable hash: parts that
            begin at the same place hold one another, parts that do not overlap share no row.
        split_seed: of what is taken out as a fraction; None: `training.seed`, so another seed is another split, too.
        template: `chat`: the model's own chat template; `plain`: texts in order; `auto`: chat where there is one.
        template_options: what the chat template is given with each conversation, such as `enable_thinking`.
        learn_reasoning: whether thoughts are learned; None learns those of the rows, and no empty one that the template
            inserts.
        reset_template: `training` joins a row's answers into one sequence where the template rewrites earlier turns.
        reasoning: `as_text` writes thoughts before answers, `drop` leaves them out: for templates that write none.
        system: `fold` puts the system text before the first user turn, for templates without a system turn.
        tools: `as_text` writes tools, calls and results as text, for templates without tools.
        allow_leakage: whether to continue although held-out rows are among the training rows.
        replay: general rows in addition to those of the task.
        canaries: made-up secrets planted among the training rows.
        streaming: read the training rows while the run trains, shard by shard, instead of all of them before it.
        shuffle_buffer: streaming: rows that are held to be shuffled.
    """

    train: TrainingRows
    validation: JudgingRows | None = None
    held_out: JudgingRows | None = None
    map: dict[str, str] | None = None
    group_by: str | None = None
    part: tuple[Fraction, Annotated[float, Field(gt=0.0, le=1.0)]] | None = None
    split_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    template: TemplateName | None = None
    template_options: dict[str, TemplateOption] | None = None
    learn_reasoning: bool | None = None
    reset_template: Literal["training"] | None = None
    reasoning: Literal["as_text", "drop"] | None = None
    system: Literal["fold"] | None = None
    tools: Literal["as_text"] | None = None
    allow_leakage: bool | None = None
    replay: ReplayRecipe | None = None
    canaries: CanariesRecipe | None = None
    streaming: bool | None = None
    shuffle_buffer: Annotated[int, Field(ge=2, le=MAX_SHUFFLE_BUFFER)] | None = None

    def listed(self) -> dict[str, tuple[SourceRecipe, ...]]:
        """The lists of sources, by key."""
        asked = {"train": self.train, "validation": self.validation, "held_out": self.held_out}
        return {key: value for key, value in asked.items() if isinstance(value, tuple)}

    def files(self) -> dict[str, str]:
        """The files and remote sources that it names, by key (`train`, `train[1]`, `replay.file`); shares of the
        training rows are none."""
        named: dict[str, Any] = {"train": self.train, "validation": self.validation, "held_out": self.held_out}
        for key, sources in self.listed().items():
            named |= {f"{key}[{place}]": source.path for place, source in enumerate(sources)}
        if self.replay is not None:
            named |= {"replay.file": self.replay.file, "replay.held_out": self.replay.held_out}
        return {key: value for key, value in named.items() if isinstance(value, str)}

    def with_files(self, files: Mapping[str, str]) -> DataRecipe:
        """A copy that names other files, by keys of `files`; a key alone (`train`) takes the place of its list."""
        changed: dict[str, Any] = {
            key: tuple(
                source.model_copy(update={"path": files.get(f"{key}[{place}]", source.path)})
                for place, source in enumerate(sources)
            )
            for key, sources in self.listed().items()
        }
        changed |= {key: files[key] for key in ("train", "validation", "held_out") if key in files}
        replayed = {key.removeprefix("replay."): file for key, file in files.items() if key.startswith("replay.")}
        if self.replay is not None:
            changed["replay"] = self.replay.model_copy(update=replayed)
        return self.model_copy(update=changed)

    @model_validator(mode="after")
    def _buffers_a_stream(self) -> DataRecipe:
        if self.shuffle_buffer is not None and not self.streaming:
            raise ValueError("shuffle_buffer with streaming: true alone; other rows are shuffled as a whole")
        return self

    @field_validator("part")
    @classmethod
    def _goes_forward(cls, part: tuple[float, float] | None) -> tuple[float, float] | None:
        if part is not None and part[0] >= part[1]:
            raise ValueError("a share from a smaller to a larger number, such as [0, 0.25]")
        return part


Rank = Annotated[int, Field(ge=1, le=4096)]
StepCount = Annotated[int, Field(ge=0)]


class LayersRecipe(FrozenModel):
    """Which layers carry an adapter: the first ones, the last ones, or both ends.

    Attributes:
        first, last: the number of layers from the first one on, and of those up to the last one.
    """

    first: Annotated[int, Field(ge=1)] | None = None
    last: Annotated[int, Field(ge=1)] | None = None


class MethodRecipe(FrozenModel):
    """How the weights change. `ml/training/methods/rules.py` says which settings a method takes; others are refused.

    Attributes:
        name: the method.
        rank: of the adapter.
        alpha: scale of the adapter: it counts alpha / rank (rsLoRA: alpha / square root of the rank).
        dropout: share of an adapter's inputs that is left out at random while training.
        targets: names of matrices, groups of them or patterns, one or several.
        layers: which layers carry an adapter; None for every layer.
        modules_to_save: embeddings and head that are trained in whole beside the adapter, by name.
        learning_rate_ratio: loraplus: how many times faster B learns than A.
        num_svd_iterations: pissa: iterations of the randomised decomposition; 0 for the exact one.
        initial_rank, target_rank: adalora: rank of every matrix at first, and average rank at the end.
        warmup_steps: adalora: steps before any rank is taken away.
        final_steps: adalora: steps at the end in which ranks stay.
        reallocate_every_steps: adalora: steps between two decisions about ranks.
        orthogonality_weight: adalora: weight of the penalty that keeps a matrix's ranks orthogonal.
        sensitivity_smoothing: adalora: how much of the importance so far is kept at each step.
        uncertainty_smoothing: adalora: the same for the uncertainty of the importance.
        quantisation: qlora: how the frozen base is held.
        num_virtual_tokens: prompt_tuning: length of the trained prompt.
        options: settings of a method that another package brings.
    """

    name: MethodName
    rank: Rank | None = None
    alpha: Annotated[float, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0.0, le=0.9)] | None = None
    targets: str | tuple[str, ...] | None = None
    layers: LayersRecipe | None = None
    modules_to_save: str | tuple[str, ...] | None = None
    learning_rate_ratio: Annotated[float, Field(gt=0)] | None = None
    num_svd_iterations: Annotated[int, Field(ge=0, le=1000)] | None = None
    initial_rank: Rank | None = None
    target_rank: Rank | None = None
    warmup_steps: StepCount | None = None
    final_steps: StepCount | None = None
    reallocate_every_steps: Annotated[int, Field(ge=1)] | None = None
    orthogonality_weight: Annotated[float, Field(ge=0)] | None = None
    sensitivity_smoothing: OpenFraction | None = None
    uncertainty_smoothing: OpenFraction | None = None
    quantisation: QuantisationName | None = None
    num_virtual_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    options: dict[str, bool | int | float | str] | None = None


def _off(given: Any) -> Any:
    """YAML reads `off` as false, and `on` as true, which would pass for 1."""
    if given is True:
        raise ValueError("off, model, or a number above 0")
    return "off" if given is False else given


RouterAuxLoss = Annotated[
    Literal["off", "model"] | Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)], BeforeValidator(_off)
]


def _quoted(given: Any) -> Any:
    """YAML reads `1` and `true` as other values than texts: their spelling would be lost."""
    if not isinstance(given, str):
        raise ValueError(f"a label in quotes, such as '1': {given!r} is not text")
    return given


ClassName = Annotated[str, BeforeValidator(_quoted), Field(min_length=1)]


class ObjectiveRecipe(FrozenModel):
    """What is minimised. `ml/training/objectives/rules.py` says which settings an objective takes; others are refused.

    Attributes:
        name: the objective.
        beta: dpo, ipo, kto: penalty on leaving the start; orpo: weight of the odds ratio; simpo: scale of the rewards.
        loss_type: dpo: what the log-ratios of a pair are put into.
        label_smoothing: sft, classify: share of the weight spread over all; dpo, simpo: of labels that are wrong.
        gamma: simpo: margin by which the chosen answer must be ahead.
        nll_over: orpo: tokens of the chosen row that cross-entropy is taken over.
        nll_weight: dpo, ipo, simpo: weight of the cross-entropy of the chosen answer, added to the loss.
        desirable_weight, undesirable_weight: kto: weights of good and of bad answers.
        rewards: grpo: parts of what an answer is worth.
        num_samples: grpo: answers that are drawn to each prompt.
        num_iterations: grpo: updates of the weights with the answers of a step.
        clip_ratio_low, clip_ratio_high: grpo: how far below and above 1 the ratio of new to old probability counts.
        max_new_tokens: grpo: most tokens of an answer that is drawn.
        kl_weight: grpo: weight of the divergence from the model at its first step.
        divide_by_spread: grpo: whether advantages are divided by the spread of their group.
        mask_truncated: grpo: whether answers that were cut are left out of the loss; they count in their group.
        loss_weighting: whether every token counts the same, every row, or every token by its own probability (`dft`).
        teacher: distillation: a base model, a folder, or a run, with the same tokenizer.
        temperature: grpo: of drawing; distillation: softens both distributions; embed: divides similarities.
        alpha: distillation: share of the teacher in the loss; the rest is cross-entropy.
        divergence: distillation: how the two distributions are compared.
        teacher_share: jensen_shannon: the teacher's share in the mixture that both are compared with.
        router_aux_loss: loss of the routers of a mixture of experts: `off`, `model` (its config's), or a coefficient.
        multi_label: classify: whether a row may have several labels.
        classes: classify: all labels, in the order of the outputs; those of the training rows where it is left out.
        class_weights: classify: whether every row counts the same, or (`balanced`) every class.
        center_rewards_coefficient: rank: weight of the squared sum of both scores of a pair, which keeps them around 0.
        pooling: embed: whether a vector is the mean over all tokens or the state of the last one.
        dimensions: embed: lengths to which vectors may be cut (Matryoshka), each trained with its own loss.
        query_prompt, document_prompt: embed: text before each query and before each document.
        options: settings of an objective that another package brings.
    """

    name: ObjectiveName
    beta: Annotated[float, Field(gt=0, le=100)] | None = None
    loss_type: PairLoss | None = None
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] | None = None
    gamma: Annotated[float, Field(ge=0.0, le=100)] | None = None
    nll_over: NllTokens | None = None
    nll_weight: Annotated[float, Field(ge=0.0, le=100)] | None = None
    desirable_weight: Annotated[float, Field(ge=0.0, le=100)] | None = None
    undesirable_weight: Annotated[float, Field(ge=0.0, le=100)] | None = None
    rewards: Annotated[tuple[Reward, ...], Field(min_length=1)] | None = None
    num_samples: Annotated[int, Field(ge=2, le=256)] | None = None
    num_iterations: Annotated[int, Field(ge=1, le=64)] | None = None
    clip_ratio_low: OpenFraction | None = None
    clip_ratio_high: Annotated[float, Field(gt=0, le=100)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    kl_weight: Annotated[float, Field(ge=0, le=100)] | None = None
    divide_by_spread: bool | None = None
    mask_truncated: bool | None = None
    loss_weighting: LossWeighting | None = None
    teacher: str | None = None
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    divergence: Divergence | None = None
    teacher_share: OpenFraction | None = None
    router_aux_loss: RouterAuxLoss | None = None
    multi_label: bool | None = None
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] | None = None
    class_weights: ClassWeights | None = None
    center_rewards_coefficient: Annotated[float, Field(ge=0.0, le=100)] | None = None
    pooling: Pooling | None = None
    dimensions: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    options: dict[str, bool | int | float | str] | None = None


class OptimizerRecipe(FrozenModel):
    """How weights move by their gradients. `ml/training/optimizers/rules.py` says which settings a rule takes.

    Attributes:
        name: the rule.
        beta1: decay of the first moment.
        beta2: decay of the second moment; `auto`: by batch size, so that its half-life in tokens is the default's.
        epsilon: added to the root of the second moment.
        momentum, num_iterations: of Muon: decay of the momentum, and Newton-Schulz iterations of a step.
        adamw_rate_factor: of Muon: the learning rate of the weights that AdamW updates, as a share of `learning_rate`.
        options: settings of an optimizer that another package brings.
    """

    name: OptimizerName
    beta1: Fraction | None = None
    beta2: Fraction | Literal["auto"] | None = None
    epsilon: Annotated[float, Field(gt=0, lt=1)] | None = None
    momentum: Fraction | None = None
    num_iterations: Annotated[int, Field(ge=1, lt=100)] | None = None
    adamw_rate_factor: Annotated[float, Field(gt=0, le=100)] | None = None
    options: dict[str, bool | int | float | str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, given: Any) -> Any:
        """A name alone, `optimizer: muon`, means that rule with its own settings."""
        return {"name": given} if isinstance(given, str) else given


class AverageRecipe(FrozenModel):
    """An average of the weights over the steps, in place of those of the last step.

    Attributes:
        kind: `ema`, an exponential moving average; `uniform`, a plain mean.
        decay: what an exponential average keeps of itself at each step.
        from_step, every_steps: where a uniform average begins, and how often it takes the weights in.
    """

    kind: AverageKind
    decay: OpenFraction | None = None
    from_step: Annotated[int, Field(ge=1)] | None = None
    every_steps: Annotated[int, Field(ge=1)] | None = None


class TrainingRecipe(FrozenModel):
    """How long and how fast. Steps are optimizer updates.

    Attributes:
        epochs: passes over the training rows; may be a fraction.
        max_steps: steps at most.
        global_batch_size: examples a step, of all devices.
        global_batch_tokens: in its place, tokens a step on average: the examples follow from the mean length of a row.
        micro_batch_tokens: tokens computed together, padding included; changes memory and speed, not the gradient.
        micro_batch_workers: on a CPU, processes of one thread each for micro-batches and judging; 1: one, all threads.
        optimizer: how weights move by their gradients.
        learning_rate: peak of the learning rate.
        schedule: how the rate falls after the warm-up.
        min_lr_ratio: where a falling schedule ends, as a share of the peak.
        warmup_fraction: share of the steps in which the rate rises.
        warmup_steps: the same as a number of steps, in place of the share.
        weight_decay: decay of the weights, separate from the gradient, on matrices only.
        clip_gradient_norm: largest norm of the gradient; 0 for no limit.
        neftune_alpha: noise on the embeddings while training: at most alpha / sqrt(tokens of the row * width).
        average: an average of the weights over the steps, in place of the last weights.
        max_length_tokens: longest row that is trained.
        overlong: what to do with longer rows.
        order: how rows are put into steps.
        precision: what matrices are multiplied in.
        gradient_checkpointing: whether activations are computed again in the backward pass, to hold less memory.
        shared_prefix: whether a beginning that rows of a micro-batch share is computed once.
        sharding: on several devices, whether each holds a copy of the weights (ddp) or a share of them (fsdp).
        packing: whether rows of a micro-batch are concatenated without padding.
        compile: whether layers are compiled by torch before the first step.
        numba_kernels: whether elementwise work on a CPU is done by loops that Numba compiles.
        validate_every_steps, checkpoint_every_steps: steps between two validations, and between two checkpoints.
        keep_checkpoints: how many of the last checkpoints are kept, in addition to the best.
        early_stopping_patience: validations without a new best before the run stops; 0 for never.
        num_threads: processor threads; part of the plan, since sums depend on it.
        seed: of order, dropout and adapter.
    """

    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    global_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    global_batch_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    micro_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    micro_batch_workers: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] | None = None
    optimizer: OptimizerRecipe | None = None
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    schedule: ScheduleName | None = None
    min_lr_ratio: Fraction | None = None
    warmup_fraction: Fraction | None = None
    warmup_steps: StepCount | None = None
    weight_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip_gradient_norm: Annotated[float, Field(ge=0)] | None = None
    neftune_alpha: Annotated[float, Field(ge=0, le=1000)] | None = None
    average: AverageRecipe | None = None
    max_length_tokens: Annotated[int, Field(ge=2)] | None = None
    overlong: Overlong | None = None
    order: OrderName | None = None
    precision: PrecisionName | None = None
    gradient_checkpointing: Literal["auto"] | bool | None = None
    shared_prefix: bool | None = None
    sharding: ShardingName | None = None
    packing: Switch | None = None
    compile: Switch | None = None
    numba_kernels: Switch | None = None
    validate_every_steps: Annotated[int, Field(ge=1)] | None = None
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    keep_checkpoints: Annotated[int, Field(ge=1)] | None = None
    early_stopping_patience: Annotated[int, Field(ge=0)] | None = None
    num_threads: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class BudgetRecipe(FrozenModel):
    """What the run may cost at most; at the first cap that is met it pauses, with a checkpoint to continue from.

    Attributes:
        hours: of the machine.
        usd: US dollars.
        tokens: of training steps, without padding.
        energy_kwh: of the devices, cooling included.
    """

    hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None
    energy_kwh: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Recipe(FrozenModel):
    """The whole request. Paths are relative to the recipe file until they are resolved.

    Attributes:
        base_model: a name of the catalogue, of a hub, or a path.
        data: which rows.
        method: how the weights change.
        objective: what is minimised.
        training: how long and how fast.
        evaluation: how the result is evaluated.
        budget: what the run may cost at most.
        tracking: experiment trackers that the run is reported to; None: those that the environment names.
    """

    base_model: str
    data: DataRecipe
    method: MethodRecipe | None = None
    objective: ObjectiveRecipe | None = None
    training: TrainingRecipe | None = None
    evaluation: EvaluationRecipe | None = None
    budget: BudgetRecipe | None = None
    tracking: Tracking | None = None
