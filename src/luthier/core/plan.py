"""The plan: the recipe made complete. Every value is there, each with its source; its hash names the whole."""

from __future__ import annotations

from typing import Any, Literal

from luthier.core.budget import BudgetPlan
from luthier.core.dataset import DatasetProfile, Overlong
from luthier.core.digest import sha256_document
from luthier.core.frozen import Frozen
from luthier.core.recipe import MethodName, MetricName, ObjectiveName, OrderName, Recipe, ScheduleName

Source = Literal["asked", "default", "measured", "derived"]


class ValueSource(Frozen):
    """Where a value comes from, and why it is what it is."""

    source: Source
    why: str


class ModelPlan(Frozen):
    """The base model, resolved to a local transformers folder and the digest of its weights."""

    name: str
    path: str
    sha256: str
    num_parameters: int
    num_embedding_parameters: int
    context_length_tokens: int
    template: Literal["chat", "plain"]
    template_sha256: str


class DataPlan(Frozen):
    """The splits as they were read. `validation` and `held_out` are None where the run has none.

    num_leaked: held-out rows that also stand in the training rows. num_same_prompt: held-out rows of which only the
    prompt does. num_validation_leaked: validation rows that also stand in the training rows. part: the share of the
    training rows that is used, None for all.
    """

    train: DatasetProfile
    validation: DatasetProfile | None = None
    held_out: DatasetProfile | None = None
    num_leaked: int = 0
    num_same_prompt: int = 0
    num_validation_leaked: int = 0
    part: tuple[float, float] | None = None


class MethodPlan(Frozen):
    """The method with all of its settings. rank, alpha, dropout and targets are unused by `full`."""

    name: MethodName
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    num_trainable_parameters: int


class ObjectivePlan(Frozen):
    """What is minimised."""

    name: ObjectiveName


class TrainingPlan(Frozen):
    """Everything the loop needs to know. Field meanings as in the recipe; all units in the names."""

    num_steps: int
    num_steps_per_epoch: int
    num_warmup_steps: int
    epochs: float
    global_batch_size: int
    micro_batch_tokens: int
    learning_rate: float
    schedule: ScheduleName
    weight_decay: float
    clip_gradient_norm: float
    max_length_tokens: int
    overlong: Overlong
    order: OrderName
    precision: Literal["float32", "bfloat16"]
    attention: Literal["by_length", "sdpa"]
    gradient_checkpointing: bool = False
    shared_prefix: bool = False
    device: str
    validate_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    early_stopping_patience: int
    num_threads: int
    seed: int


class EvaluationPlan(Frozen):
    """How the result is judged."""

    metrics: tuple[MetricName, ...]
    few_shot: int
    max_new_tokens: int
    max_samples: int


class Plan(Frozen):
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
    sources: dict[str, ValueSource]

    @property
    def hash(self) -> str:
        """SHA-256 over what decides the outcome: not reasons, not the recipe's wording, not where files lie, not
        the budget, which changes when a run stops and not what it trains.

        Files are in it by their digests.
        """
        splits: Any = {split: {"file"} for split in ("train", "validation", "held_out")}
        if self.data.part is None:  # plans of before there were parts keep their hash
            splits["part"] = True
        excluded: Any = {
            "sources": True,
            "recipe": True,
            "budget": True,
            "base_model": {"path", "name"},
            "data": splits,
        }
        return sha256_document(self.model_dump(mode="json", exclude=excluded))

    def values(self) -> list[dict[str, Any]]:
        """Every value as {name, value, source, why}, in the order of the plan."""
        document = self.model_dump(mode="json")
        rows = []
        for name, source in self.sources.items():
            section, _, key = name.partition(".")
            value = document[section][key] if key else document[section]
            rows.append({"name": name, "value": value, "source": source.source, "why": source.why})
        return rows
