"""A small but complete plan and random examples, without a data file in sight."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.dataset import DatasetProfile, TokenisedExample, profile_tokens
from luthier.core.evaluation_plan import EvaluationPlan
from luthier.core.plan import (
    DataPlan,
    MethodPlan,
    ModelPlan,
    ObjectivePlan,
    Plan,
    TrainingPlan,
)
from luthier.core.recipe import DataRecipe, MethodRecipe, Recipe
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.resolve_method import resolve_method, with_schedule
from luthier.ml.training.methods.protocol import load_method
from luthier.ml.training.methods.rules import rules_of
from luthier.ml.training.model import TrainableModel

VOCABULARY = 300


@pytest.fixture
def examples() -> list[TokenisedExample]:
    return random_examples(24, seed=1)


def random_examples(num: int, seed: int, shortest: int = 4, longest: int = 20) -> list[TokenisedExample]:
    """Examples whose second half is learned; a fixed pattern, so that there is something to learn."""
    draw = random.Random(seed)
    made = []
    for index in range(num):
        length = draw.randint(shortest, longest)
        start = draw.randrange(VOCABULARY)
        ids = array("i", [(start + 3 * i) % VOCABULARY for i in range(length)])
        made.append(TokenisedExample(f"row:{index}", ids, bytes(int(i >= length // 2) for i in range(length))))
    return made


SMALL: dict[str, Any] = {
    "rank": 4,
    "initial_rank": 6,
    "target_rank": 3,
    "alpha": 8.0,
    "targets": ("q_proj", "down_proj"),
    "num_virtual_tokens": 3,
    "quantisation": "int8",
}
"""Settings that fit the tiny model; each method takes those that it knows."""


def method_plan(model: Path, name: str, dropout: float, num_steps: int, **settings: Any) -> MethodPlan:
    known = rules_of(name).settings
    asked = {key: value for key, value in (SMALL | {"dropout": dropout} | settings).items() if key in known}
    recipe, sources = MethodRecipe(name=name, **asked), Provenance()
    return with_schedule(resolve_method(recipe, read_structure(str(model)), "cpu", sources), recipe, num_steps, sources)


@pytest.fixture
def make_plan(tiny_model: Path, examples: list[TokenisedExample]) -> Callable[..., Plan]:
    def make(
        method: str = "lora", dropout: float = 0.0, settings: dict[str, Any] | None = None, **training: Any
    ) -> Plan:
        profile = DatasetProfile(
            split="train",
            file="rows.jsonl",
            sha256="0" * 64,
            shape="chat",
            shape_reason="made by a test",
            num_rows=len(examples),
            num_dropped=0,
            **profile_tokens(examples),
        )
        values: dict[str, Any] = {
            "num_steps": 6,
            "num_steps_per_epoch": 6,
            "num_warmup_steps": 1,
            "epochs": 1.0,
            "global_batch_size": 4,
            "micro_batch_tokens": 60,
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "weight_decay": 0.0,
            "clip_gradient_norm": 1.0,
            "max_length_tokens": 64,
            "overlong": "error",
            "order": "shuffled",
            "precision": "float32",
            "attention": "by_length",
            "device": "cpu",
            "validate_every_steps": 2,
            "checkpoint_every_steps": 2,
            "keep_checkpoints": 2,
            "early_stopping_patience": 0,
            "num_threads": 1,
            "seed": 0,
        } | training
        return Plan(
            recipe=Recipe(base_model="tiny", data=DataRecipe(train="rows.jsonl")),
            base_model=ModelPlan(
                name="tiny",
                path=str(tiny_model),
                sha256="1" * 64,
                num_parameters=1,
                num_embedding_parameters=1,
                context_length_tokens=64,
                template="chat",
                template_sha256="2" * 64,
            ),
            data=DataPlan(train=profile),
            method=method_plan(tiny_model, method, dropout, values["num_steps"], **(settings or {})),
            objective=ObjectivePlan(name="sft"),
            training=TrainingPlan(**values),
            evaluation=EvaluationPlan(metrics=("perplexity",), few_shot=0, max_new_tokens=8, max_samples=8),
            sources={},
        )

    return make


@pytest.fixture
def make_model() -> Callable[..., TrainableModel]:
    """A trainable model of a plan, in any precision (also float64, which no plan offers)."""

    def make(plan: Plan, dtype: torch.dtype | None = None) -> TrainableModel:
        if dtype is None:
            return TrainableModel.load(plan)
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=dtype)
        return TrainableModel(base, load_method(plan.method), plan.training.seed)

    return make


class FixedSchedule:
    """Steps of `size` examples in the order given, cut into micro-batches of `micro` examples."""

    def __init__(self, num_examples: int, size: int, micro: int) -> None:
        self.num, self.size, self.micro = num_examples, size, micro

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        start = step * self.size
        indices = [i % self.num for i in range(start, start + self.size)]
        return tuple(tuple(indices[i : i + self.micro]) for i in range(0, self.size, self.micro))

    def share(self, step: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]:
        return tuple(batch[rank::size] for batch in self.step(step) if batch[rank::size])

    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]:
        return ()

    def epoch_of(self, step: int) -> float:
        return step * self.size / self.num

    def position(self, step: int) -> None:
        return None

    def resume_at(self, position: object) -> None:
        pass
