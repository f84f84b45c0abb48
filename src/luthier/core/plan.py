"""The plan: the recipe made complete. Every value is there, each with its source; its hash names the whole."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from luthier.core.aliases import new_key
from luthier.core.conversation import AS_THEY_ARE, OptedTurns
from luthier.core.data_sources import SourcePlan, not_in_hash
from luthier.core.data_stream import StreamPlan
from luthier.core.dataset import DatasetProfile, Overlong, SplitProvenance
from luthier.core.evaluation_plan import Bar, EvaluationPlan
from luthier.core.forward_path import ForwardPath
from luthier.core.frozen_model import FrozenModel
from luthier.core.graders import GradingLoad, Reward
from luthier.core.ids import sha256_document
from luthier.core.recipe import (
    AverageKind,
    ClassWeights,
    Divergence,
    LossWeighting,
    NllTokens,
    ObjectiveName,
    OptimizerName,
    OrderName,
    PairLoss,
    Recipe,
    ScheduleName,
    ShardingName,
    TemplateOption,
)
from luthier.core.registry import OBJECTIVES
from luthier.core.run import BudgetPlan, RemoteJudge
from luthier.core.task_head import Pooling, TaskHead
from luthier.core.tracking import TrackerPlan

Source = Literal["asked", "default", "measured", "derived"]
Quantisation = Literal["nf4", "int8", "bfloat16"]


class ValueSource(FrozenModel):
    """Where a value comes from, and `why` it is what it is: the reason, for people."""

    source: Source
    why: str


class ModelPlan(FrozenModel):
    """The base model, resolved to a local transformers folder and the digest of its weights."""

    name: str
    path: str
    sha256: str
    num_parameters: int
    num_embedding_parameters: int
    context_length_tokens: int
    template: Literal["chat", "plain"]
    template_sha256: str


class ReplayPlan(FrozenModel):
    """General rows in addition to those of the task. `rows` are trained on, `held_out` measure what is forgotten.

    Attributes:
        num_per_step: replayed examples a step.
        fraction: their share of it.
        num_leaked: held-out general rows that are also trained on.
        num_also_in_train: replayed rows that also are in the training rows of the task.
    """

    num_per_step: int
    fraction: float
    rows: DatasetProfile | None = None
    held_out: DatasetProfile | None = None
    num_leaked: int = 0
    num_also_in_train: int = 0


class CanariesPlan(FrozenModel):
    """Made-up secrets among the training rows.

    Attributes:
        sha256: of their texts. They are not rows of the file, and are counted among the examples and tokens of the
            training rows, not among its rows.
    """

    num: int
    seed: int
    sha256: str


class DataPlan(FrozenModel):
    """The splits as they were read. `validation` and `held_out` are None where the run has none.

    Attributes:
        num_leaked: held-out rows that also are in the training rows.
        num_same_prompt: held-out rows of which only the prompt is.
        num_validation_leaked: validation rows that also are in the training rows.
        part: the share of the training rows that is used, None for all.
        canaries: what was planted among the training rows, None for nothing.
        split: the proved split whose sides the files are; None where no proof covers a file that judges.
        template_options: what the chat template is given with each conversation.
        learn_reasoning, reset_template, reasoning, system, tools: as the recipe has them.
        sources: where the rows come from, where they are remote or of several sources; empty for local files.
        template_day: the fixed day that a template which writes the date is given; None where it writes none.
        stream: of training rows that are streamed; `train` then has estimates for all of them. None of all others.
    """

    train: DatasetProfile
    validation: DatasetProfile | None = None
    held_out: DatasetProfile | None = None
    num_leaked: int = 0
    num_same_prompt: int = 0
    num_validation_leaked: int = 0
    part: tuple[float, float] | None = None
    replay: ReplayPlan | None = None
    canaries: CanariesPlan | None = None
    split: SplitProvenance | None = None
    template_options: dict[str, TemplateOption] = Field(default_factory=dict)
    template_day: str | None = None
    learn_reasoning: bool | None = None
    reset_template: Literal["training"] | None = None
    reasoning: Literal["as_text", "drop"] | None = None
    system: Literal["fold"] | None = None
    tools: Literal["as_text"] | None = None
    sources: tuple[SourcePlan, ...] = ()
    stream: StreamPlan | None = None

    @property
    def has_epochs(self) -> bool:
        """Whether it is known, at least about, how many training rows there are."""
        return self.stream is None or self.stream.num_rows is not None


class MethodPlan(FrozenModel):
    """The method with all of its settings; what a method has no use for is 0, empty or None.

    Attributes:
        rank: of what is held and trained; AdaLoRA's falls from there to `target_rank` on average.
        targets: module names, or the last parts of them where every layer is included.
        last_reallocation_step: from this step on AdaLoRA's ranks stay.
        expert_targets: tensors that hold the matrices of experts, named in the same way.
        expert_rank: of each of these.
        modules_to_save: embeddings and head that are trained in whole beside the adapter, named as targets are; both
            where they share one matrix.
        num_saved_parameters: of these modules, a shared matrix once; among the trainable ones.
    """

    name: str
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    num_trainable_parameters: int
    learning_rate_ratio: float | None = None
    num_svd_iterations: int | None = None
    target_rank: int | None = None
    warmup_steps: int | None = None
    last_reallocation_step: int | None = None
    reallocate_every_steps: int | None = None
    orthogonality_weight: float | None = None
    sensitivity_smoothing: float | None = None
    uncertainty_smoothing: float | None = None
    quantisation: Quantisation | None = None
    num_virtual_tokens: int | None = None
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    expert_targets: tuple[str, ...] = ()
    expert_rank: int | None = None
    modules_to_save: tuple[str, ...] = ()
    num_saved_parameters: int = 0

    @property
    def is_adapter(self) -> bool:
        """Whether it trains something at matrices of an unchanged base."""
        return bool(self.targets or self.expert_targets)


class TeacherPlan(FrozenModel):
    """Whose distribution a student learns: a base model, or one with the adapter of a run on it.

    Attributes:
        adapter_path: None for a model without one.
        precision, quantisation: how it is run.
        template: how it reads prompts where it is evaluated itself.
        hidden_size: width of its last hidden states.
        vocabulary_size: rows of its head; of two vocabularies that are padded differently the tokens of the smaller one
            count.
        template_options, opted_turns, learn_reasoning: how it writes conversations where it is evaluated itself: as its
            own run was trained, or, of a base model, as the student is.
    """

    name: str
    path: str
    sha256: str
    adapter_path: str | None = None
    adapter_sha256: str | None = None
    precision: Literal["float32", "bfloat16"]
    quantisation: Quantisation | None = None
    device: str = "cpu"
    template: Literal["auto", "chat", "plain"] = "auto"
    num_parameters: int
    hidden_size: int
    vocabulary_size: int
    context_length_tokens: int
    template_options: dict[str, TemplateOption] = Field(default_factory=dict)
    opted_turns: OptedTurns = AS_THEY_ARE
    learn_reasoning: bool | None = None

    @property
    def unused_fields(self) -> set[str]:
        """How it writes conversations, where that is not used: hashes of plans without it do not change."""
        unused = {"template_options": {}, "opted_turns": AS_THEY_ARE, "learn_reasoning": None}
        return {name for name, value in unused.items() if getattr(self, name) == value}


class ObjectivePlan(FrozenModel):
    """What is minimised, with all of its settings; what an objective has no use for is None.

    Attributes:
        router_aux_loss: what the loss of the routers of a mixture of experts is multiplied by; None where it is off.
        judges, remote_judges: models that graders of `rewards` ask, here and behind servers; None where there are none.
        grading: what each of these graders has them read and write for an answer.
        task_head: what the model has in place of text, as the training rows say; None where it writes.
        task_head_notes: what a person should know of how these were read.
    """

    name: ObjectiveName
    beta: float | None = None
    loss_type: PairLoss | None = None
    label_smoothing: float | None = None
    gamma: float | None = None
    nll_over: NllTokens | None = None
    nll_weight: float | None = None
    desirable_weight: float | None = None
    undesirable_weight: float | None = None
    rewards: tuple[Reward, ...] | None = None
    num_samples: int | None = None
    num_iterations: int | None = None
    clip_ratio_low: float | None = None
    clip_ratio_high: float | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    kl_weight: float | None = None
    divide_by_spread: bool | None = None
    mask_truncated: bool | None = None
    loss_weighting: LossWeighting | None = None
    teacher: TeacherPlan | None = None
    judges: tuple[TeacherPlan, ...] | None = None
    grading: tuple[GradingLoad, ...] | None = None
    remote_judges: tuple[RemoteJudge, ...] | None = None
    alpha: float | None = None
    divergence: Divergence | None = None
    teacher_share: float | None = None
    router_aux_loss: float | None = None
    multi_label: bool | None = None
    classes: tuple[str, ...] | None = None
    class_weights: ClassWeights | None = None
    center_rewards_coefficient: float | None = None
    pooling: Pooling | None = None
    dimensions: tuple[int, ...] | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    task_head: TaskHead | None = None
    task_head_notes: tuple[str, ...] = ()
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @property
    def loss_unit(self) -> str:
        """What a loss is counted in; empty where it is a number without a unit."""
        if self.task_head is not None:
            return self.task_head.loss_unit
        return "" if self.learns_preferences else "nats a learned token"

    @property
    def learns_preferences(self) -> bool:
        """Whether answers are compared; False for a plug-in that is no longer installed."""
        return bool((rules := OBJECTIVES.find(self.name)) and rules.learns_preferences)

    @property
    def draws(self) -> bool:
        """Whether a step learns from answers that the model writes, and not from those of the rows."""
        return self.num_samples is not None

    def max_step_tokens(self, num_tokens: float, num_prompt_tokens: float, num_rows: float) -> float:
        """The maximum number of tokens that a step processes for some rows.

        Args:
            num_tokens: Tokens of all rows together.
            num_prompt_tokens: Those of them that are in prompts.
            num_rows: How many rows there are.

        Returns:
            `num_tokens` for a supervised objective. For one that samples, all prompts and the longest possible answers,
            once for each update.
        """
        if self.num_samples is None or self.max_new_tokens is None:
            return num_tokens
        # Each prompt is answered num_samples times, and each answer may have max_new_tokens.
        once = self.num_samples * (num_prompt_tokens + num_rows * self.max_new_tokens)
        return (self.num_iterations or 1) * once


class OptimizerPlan(FrozenModel):
    """How masters move by their gradients; what a rule has no use for is None.

    Attributes:
        name: the rule.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        momentum: of Muon.
        num_iterations: Newton-Schulz iterations of Muon.
        adamw_rate_factor: of Muon: the rate of what AdamW updates, as a share of `learning_rate`; None, as before: 1.
        options: settings of an optimizer that another package brings, all of them.
    """

    name: OptimizerName = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    momentum: float | None = None
    num_iterations: int | None = None
    adamw_rate_factor: float | None = None
    options: dict[str, bool | int | float | str] | None = None


class AveragePlan(FrozenModel):
    """How the weights are averaged over the steps; what a kind has no use for is None.

    Attributes:
        kind: exponential or uniform.
        decay: what an exponential average keeps of itself at each step.
        from_step: where a uniform average begins.
        every_steps: how often a uniform average takes the weights in.
    """

    kind: AverageKind
    decay: float | None = None
    from_step: int | None = None
    every_steps: int | None = None


class TrainingPlan(FrozenModel):
    """Everything the loop needs to know. Field meanings as in the recipe; all units in the names.

    Attributes:
        min_micro_batches: into how many micro-batches a step is cut at least, if it has examples for them.
        micro_batch_workers: processes that compute micro-batches side by side; 1 is the training process itself.
        forward: where not every fast piece of computing was proved, what is used instead; None where all are.
    """

    num_steps: int
    num_steps_per_epoch: int
    num_warmup_steps: int
    epochs: float
    global_batch_size: int
    micro_batch_tokens: int
    min_micro_batches: int = 1
    micro_batch_workers: int = 1
    optimizer: OptimizerPlan = OptimizerPlan()
    learning_rate: float
    schedule: ScheduleName
    min_lr_ratio: float = 0.0
    weight_decay: float
    clip_gradient_norm: float
    neftune_alpha: float = 0.0
    average: AveragePlan | None = None
    max_length_tokens: int
    overlong: Overlong
    order: OrderName
    precision: Literal["float32", "bfloat16"]
    attention: Literal["by_length", "sdpa"]
    gradient_checkpointing: bool = False
    shared_prefix: bool = False
    sharding: ShardingName = "auto"
    packing: bool = False
    compile: bool = False
    numba_kernels: bool = False
    forward: ForwardPath | None = None
    device: str
    validate_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    early_stopping_patience: int
    num_threads: int
    seed: int


_ROW_SETTINGS: Final = (
    "template_options", "template_day", "learn_reasoning", "reset_template", "reasoning", "system", "tools",
)  # fmt: skip


class Plan(FrozenModel):
    """One complete, reproducible intention. Two plans with the same hash train the same thing."""

    format: Literal[1] = 1
    recipe: Recipe
    base_model: ModelPlan
    data: DataPlan
    method: MethodPlan
    objective: ObjectivePlan
    training: TrainingPlan
    evaluation: EvaluationPlan
    budget: BudgetPlan | None = None
    tracking: tuple[TrackerPlan, ...] = ()
    sources: dict[str, ValueSource]

    @property
    def hash(self) -> str:
        """SHA-256 over what decides the outcome: not reasons, not the recipe's wording, not where files are, not
        the budget, which changes when a run stops and not what it trains. Files are in it by their digests.
        """
        splits: Any = {split: {"file"} for split in ("train", "validation", "held_out")}
        for name in ("train", "validation", "held_out"):
            if (profile := getattr(self.data, name)) is not None:
                splits[name] = {"file"} | profile.unused_fields
        # plans of before there were parts and canaries keep their hash; a proof changes nothing that is trained
        splits |= {name: True for name in ("part", "canaries") if getattr(self.data, name) is None} | {"split": True}
        splits |= {name: True for name in _ROW_SETTINGS if getattr(self.data, name) in (None, {})}
        splits["sources"] = not_in_hash(self.data.sources)
        splits["stream"] = True if self.data.stream is None else set(StreamPlan.model_fields) - {"shuffle_buffer"}
        # True leaves the whole field out; a set leaves out its names.
        splits["replay"] = True if self.data.replay is None else {"rows": {"file"}, "held_out": {"file"}}
        if self.data.replay is not None:
            for name in ("rows", "held_out"):
                if (profile := getattr(self.data.replay, name)) is not None:
                    splits["replay"][name] = {"file"} | (profile.unused_fields - {"packed"})
        # Fields that are added to a plan later must be left out here while they are unused: otherwise each stored plan
        # would get another hash.
        excluded: Any = {
            "sources": True,
            "recipe": True,
            "budget": True,
            "tracking": True,
            "base_model": {"path", "name"},
            "data": splits,
            # a run may continue on another number of devices or processes; the path computes the same loss
            "training": {"sharding": True, "forward": True, "micro_batch_workers": True},
        }
        # what an objective has no use for is not there: plans of before there were other objectives keep their hash
        document = self.objective.model_dump(mode="json")
        unused: Any = {key: True for key, value in document.items() if value is None or value == {}}
        unused |= dict.fromkeys(("task_head_notes", "grading", "remote_judges"), True)  # words and costs of the rest
        # nor are later settings that do nothing
        off: dict[str, Any] = dict.fromkeys(("nll_weight", "mask_truncated", "center_rewards_coefficient"), 0.0)
        off |= {"loss_type": "sigmoid", "num_iterations": 1}
        if self.objective.name == "sft":
            off |= {"label_smoothing": 0.0, "loss_weighting": "token"}
        unused |= {name: True for name, value in off.items() if document[name] == value}
        own: set[str] = self.objective.teacher.unused_fields if self.objective.teacher else set()
        names = {"name", "path", "adapter_path"}
        excluded["objective"] = {"teacher": names | own, "judges": {"__all__": names}} | unused
        # So do plans of before there was a choice.
        later_settings = {n for n in ("options", "adamw_rate_factor") if not getattr(self.training.optimizer, n)}
        excluded["training"]["optimizer"] = self.training.optimizer == OptimizerPlan() or later_settings
        added = ("expert_targets", "expert_rank", "modules_to_save", "num_saved_parameters")
        excluded["method"] = {name for name in added if not getattr(self.method, name)}
        # What a plan's evaluation has had from the beginning has no default.
        fields = EvaluationPlan.model_fields.items()
        unused_of_evaluation = {n for n, field in fields if getattr(self.evaluation, n) == field.default}
        # The number of labels follows from the rows, which are in the hash; how many processes judge does not matter; a
        # reflection model may be named by a path, and its size follows from it; samples are for people to read.
        left_out = {"num_scored_labels", "num_workers", "reflection_model", "reflection_parameters", "sample_prompts"}
        excluded["evaluation"] = dict.fromkeys(unused_of_evaluation | left_out, True)
        if (bar := self.evaluation.good_enough) is not None:
            unused_of_bar = {n for n, field in Bar.model_fields.items() if getattr(bar, n) == field.default}
            excluded["evaluation"]["good_enough"] = unused_of_bar
        later = ("min_lr_ratio", "neftune_alpha", "average", "packing", "compile", "numba_kernels")
        excluded["training"] |= {name: True for name in later if not getattr(self.training, name)}
        excluded["training"] |= {"min_micro_batches": True} if self.training.min_micro_batches == 1 else {}
        return sha256_document(self.model_dump(mode="json", exclude=excluded))

    def values(self) -> list[dict[str, Any]]:
        """Every value as {name, value, source, why}, in the order of the plan."""
        document = self.model_dump(mode="json")
        rows = []
        for name, source in self.sources.items():
            section, _, key = name.partition(".")
            # Sources are named `section.key`, or by a section as a whole.
            value = document[section][key] if key else document[section]
            head = self.objective.task_head
            if section == "tracking":
                value = [one.summary for one in self.tracking]
            value = head.summary if head and key == "task_head" else _without_nothing(value)
            rows.append({"name": name, "value": value, "source": source.source, "why": source.why})
        return rows

    def shown_values(self) -> list[dict[str, Any]]:
        """`values` for people: by the names that a recipe has for them today."""
        return [row | {"name": new_key(row["name"])} for row in self.values()]


def _without_nothing(value: Any) -> Any:
    """The value without the keys, at any depth, that hold nothing."""
    if isinstance(value, dict):
        return {key: _without_nothing(inner) for key, inner in value.items() if inner is not None}
    return [_without_nothing(inner) for inner in value] if isinstance(value, list) else value
