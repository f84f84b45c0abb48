"""A database in a temporary folder, and runs to put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.core.dataset import DatasetProfile
from luthier.core.plan import (
    DataPlan,
    EvaluationPlan,
    MethodPlan,
    ModelPlan,
    ObjectivePlan,
    Plan,
    TrainingPlan,
    ValueSource,
)
from luthier.core.recipe import DataRecipe, Recipe
from luthier.core.run import RunRecord, TrainResult
from luthier.store.database import Database
from luthier.store.runs import RunStore


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "luthier.db") as database:
        yield database


@pytest.fixture
def runs(database: Database) -> RunStore:
    return RunStore(database)


@pytest.fixture
def record() -> Callable[[str], RunRecord]:
    def make(run_id: str = "run-20261125-093000-aaaaaa") -> RunRecord:
        return RunRecord(
            run_id=run_id,
            status="planned",
            base_model="tiny",
            method="lora",
            plan_hash="0" * 64,
            created_at="2026-11-25T09:30:00+00:00",
            updated_at="2026-11-25T09:30:00+00:00",
            num_steps=10,
        )

    return make


@pytest.fixture
def result() -> TrainResult:
    return TrainResult(
        status="succeeded",
        stopped_because="all steps done",
        num_steps=10,
        num_tokens=1000,
        num_trained_tokens=400,
        num_examples=40,
        num_trainable_parameters=1024,
        trainable_fraction=0.01,
        train_loss=1.0625,
        best_validation_loss=None,
        best_step=10,
        seconds=2.5,
        tokens_per_second=400.0,
        examples_per_second=16.0,
        seconds_per_step=0.25,
        peak_memory_bytes=1 << 20,
        adapter_path="/adapter",
        adapter_sha256="1" * 64,
        warnings=("one",),
    )


@pytest.fixture
def plan() -> Plan:
    profile = DatasetProfile(
        split="train",
        file="train.jsonl",
        sha256="2" * 64,
        shape="chat",
        shape_reason="every row has messages",
        num_rows=40,
        num_examples=40,
        num_dropped=0,
        num_tokens=1000,
        num_trained_tokens=400,
        max_tokens=50,
        mean_tokens=25.0,
    )
    return Plan(
        recipe=Recipe(base_model="tiny", data=DataRecipe(train="train.jsonl")),
        base_model=ModelPlan(
            name="tiny",
            path="/models/tiny",
            sha256="3" * 64,
            num_parameters=100_000,
            num_embedding_parameters=12_288,
            context_length_tokens=512,
            template="chat",
            template_sha256="4" * 64,
        ),
        data=DataPlan(train=profile),
        method=MethodPlan(
            name="lora", rank=8, alpha=16.0, dropout=0.1, targets=("q_proj",), num_trainable_parameters=1024
        ),
        objective=ObjectivePlan(name="sft"),
        training=TrainingPlan(
            num_steps=10,
            num_steps_per_epoch=5,
            num_warmup_steps=1,
            epochs=2.0,
            global_batch_size=8,
            micro_batch_tokens=2048,
            learning_rate=2e-4,
            schedule="cosine",
            weight_decay=0.0,
            clip_gradient_norm=1.0,
            max_length_tokens=512,
            overlong="error",
            order="by_length",
            precision="float32",
            attention="by_length",
            device="cpu",
            validate_every_steps=5,
            checkpoint_every_steps=5,
            keep_checkpoints=2,
            early_stopping_patience=0,
            num_threads=1,
            seed=0,
        ),
        evaluation=EvaluationPlan(metrics=("perplexity",), few_shot=0, max_new_tokens=16, max_samples=10),
        sources={"training.learning_rate": ValueSource(source="asked", why="the recipe says so")},
    )
