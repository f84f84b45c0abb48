"""The recipe: what was asked, and nothing else. Every field that was not asked for is None here.

Defaults live in `ml/planning/defaults.py` and in the rules of methods, objectives and optimizers, each with its reason.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from luthier.core.dataset import Overlong
from luthier.core.frozen_model import FrozenModel
from luthier.core.graders import Reward
from luthier.core.registry import METHODS, METRICS, OBJECTIVES, OPTIMIZERS

MethodName = Annotated[str, AfterValidator(METHODS.validated), Field(json_schema_extra=METHODS.add_names)]
ObjectiveName = Annotated[str, AfterValidator(OBJECTIVES.validated), Field(json_schema_extra=OBJECTIVES.add_names)]
MetricName = Annotated[str, AfterValidator(METRICS.validated), Field(json_schema_extra=METRICS.add_names)]
OptimizerName = Annotated[str, AfterValidator(OPTIMIZERS.validated), Field(json_schema_extra=OPTIMIZERS.add_names)]
NllTokens = Literal["all", "answer"]
Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
QuantisationName = Literal["auto", "nf4", "int8"]
ScheduleName = Literal["cosine", "linear", "constant"]
OrderName = Literal["by_length", "shuffled", "as_given"]
LossWeighting = Literal["token", "sample", "fixed"]
TemplateName = Literal["auto", "chat", "plain"]
TemplateOption = bool | int | float | str
"""A value that a chat template is given beside the conversation."""
AverageKind = Literal["ema", "uniform"]
Switch = Literal["auto"] | bool
PrecisionName = Literal["auto", "float32", "bfloat16"]
ShardingName = Literal["auto", "ddp", "fsdp"]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class ReplayRecipe(FrozenModel):
    """General rows beside those of the task.

    Attributes:
        fraction: their share of each step; 0 trains on none of them.
        held_out: general rows that are never trained on, a file or a fraction of `file`: base and tuned model are held
            against each other on them, to measure what was forgotten.
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
    """Which rows. `validation` and `held_out` are a file, or a fraction to take out of `train`.

    Attributes:
        part: train on a share of the training rows alone, [from, to) of them in the order of a stable hash: parts that
            begin at the same place hold one another, parts that do not overlap share no row.
        canaries: made-up secrets planted among the training rows.
        template_options: what the chat template is given beside each conversation, such as `enable_thinking`.
        learn_reasoning: whether thoughts are learned; None learns those of the rows, and no empty one that the template
            inserts.
        reset_template: `training` joins the answers of a row into one sequence where the template rewrites earlier
            turns.
        reasoning, system, tools: what is written as text, for templates that have no place for it.
        split_seed: of what is taken out as a fraction; None takes `training.seed`, so that another seed is another
            split, too.
    """

    train: str
    validation: str | OpenFraction | None = None
    held_out: str | OpenFraction | None = None
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

    @field_validator("part")
    @classmethod
    def _goes_forward(cls, part: tuple[float, float] | None) -> tuple[float, float] | None:
        if part is not None and part[0] >= part[1]:
            raise ValueError("a share from a smaller to a larger number, such as [0, 0.25]")
        return part


Rank = Annotated[int, Field(ge=1, le=4096)]
StepCount = Annotated[int, Field(ge=0)]


class LayersRecipe(FrozenModel):
    """Which layers carry an adapter: the first so many, the last so many, or both ends.

    Attributes:
        first: the number of layers from the first one on.
        last: the number of layers up to the last one.
    """

    first: Annotated[int, Field(ge=1)] | None = None
    last: Annotated[int, Field(ge=1)] | None = None


class MethodRecipe(FrozenModel):
    """How the weights change. `ml/training/methods/rules.py` says which settings a method takes; others are refused.

    `options` are the settings of a method that another package brings.
    """

    name: MethodName
    rank: Rank | None = None
    alpha: Annotated[float, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0.0, le=0.9)] | None = None
    targets: str | tuple[str, ...] | None = None
    layers: LayersRecipe | None = None
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


class ObjectiveRecipe(FrozenModel):
    """What is minimised. `ml/training/objectives/rules.py` says which settings an objective takes; others are refused.

    Attributes:
        router_aux_loss: `off`, `model` for the coefficient of the model's own config, or a coefficient. `options` are
            the settings of an objective that another package brings.
    """

    name: ObjectiveName
    beta: Annotated[float, Field(gt=0, le=100)] | None = None
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] | None = None
    gamma: Annotated[float, Field(ge=0.0, le=100)] | None = None
    nll_over: NllTokens | None = None
    desirable_weight: Annotated[float, Field(ge=0.0, le=100)] | None = None
    undesirable_weight: Annotated[float, Field(ge=0.0, le=100)] | None = None
    rewards: Annotated[tuple[Reward, ...], Field(min_length=1)] | None = None
    num_samples: Annotated[int, Field(ge=2, le=256)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    kl_weight: Annotated[float, Field(ge=0, le=100)] | None = None
    divide_by_spread: bool | None = None
    loss_weighting: LossWeighting | None = None
    teacher: str | None = None
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    divergence: Divergence | None = None
    teacher_share: OpenFraction | None = None
    router_aux_loss: RouterAuxLoss | None = None
    options: dict[str, bool | int | float | str] | None = None


class OptimizerRecipe(FrozenModel):
    """How weights move by their gradients. `ml/training/optimizers/rules.py` says which settings a rule takes.

    Attributes:
        name: the rule.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        momentum: of Muon.
        num_iterations: Newton-Schulz iterations of Muon.
    """

    name: OptimizerName
    beta1: Fraction | None = None
    beta2: Fraction | None = None
    epsilon: Annotated[float, Field(gt=0, lt=1)] | None = None
    momentum: Fraction | None = None
    num_iterations: Annotated[int, Field(ge=1, lt=100)] | None = None

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
        from_step: where a uniform average begins.
        every_steps: how often a uniform average takes the weights in.
    """

    kind: AverageKind
    decay: OpenFraction | None = None
    from_step: Annotated[int, Field(ge=1)] | None = None
    every_steps: Annotated[int, Field(ge=1)] | None = None


class TrainingRecipe(FrozenModel):
    """How long and how fast. `epochs` may be a fraction; steps are optimizer updates."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    global_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    micro_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    optimizer: OptimizerRecipe | None = None
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    schedule: ScheduleName | None = None
    warmup_fraction: Fraction | None = None
    weight_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip_gradient_norm: Annotated[float, Field(gt=0)] | None = None
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
    validate_every_steps: Annotated[int, Field(ge=1)] | None = None
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    keep_checkpoints: Annotated[int, Field(ge=1)] | None = None
    early_stopping_patience: Annotated[int, Field(ge=0)] | None = None
    num_threads: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class EvaluationRecipe(FrozenModel):
    """How the result is judged on the held-out rows.

    Attributes:
        metrics: names of metrics, the deciding one first.
        few_shot: examples in the prompt of the second baseline.
        max_new_tokens: of an answer.
        max_thinking_tokens: of a thought before it, beside these; 0: both share them.
        max_samples: judge only the first N by stable hash.
    """

    metrics: tuple[MetricName, ...] | None = None
    few_shot: Annotated[int, Field(ge=0, le=64)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    max_thinking_tokens: Annotated[int, Field(ge=0)] | None = None
    max_samples: Annotated[int, Field(ge=1)] | None = None


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
    """The whole of what was asked. Paths are relative to the recipe file until they are resolved.

    Attributes:
        base_model: a name of the catalogue, of a hub, or a path.
        data: which rows.
        method: how the weights change.
        objective: what is minimised.
        training: how long and how fast.
        evaluation: how the result is judged.
        budget: what the run may cost at most.
    """

    base_model: str
    data: DataRecipe
    method: MethodRecipe | None = None
    objective: ObjectiveRecipe | None = None
    training: TrainingRecipe | None = None
    evaluation: EvaluationRecipe | None = None
    budget: BudgetRecipe | None = None
