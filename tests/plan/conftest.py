"""A model, a machine and a data set as the planner sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.base_model import LocalModel
from luthier.core.dataset import DatasetProfile
from luthier.core.plan import DataPlan, Plan
from luthier.core.recipe import Recipe
from luthier.models.structure import Structure, read_structure
from luthier.plan.hardware import Hardware
from luthier.plan.resolve import resolve


@pytest.fixture(scope="session")
def structure(tiny_model: Path) -> Structure:
    return read_structure(str(tiny_model))


def profile(split: str, num_examples: int = 100, **changes: Any) -> DatasetProfile:
    values: dict[str, Any] = {
        "split": split,
        "file": f"{split}.jsonl",
        "sha256": "a" * 64,
        "shape": "chat",
        "shape_reason": "made by a test",
        "num_rows": num_examples,
        "num_examples": num_examples,
        "num_dropped": 0,
        "num_tokens": 30 * num_examples,
        "num_trained_tokens": 10 * num_examples,
        "max_tokens": 60,
        "mean_tokens": 30.0,
    } | changes
    return DatasetProfile(**values)


@pytest.fixture
def make_plan(structure: Structure) -> Callable[..., Plan]:
    def make(
        document: dict[str, Any] | None = None, *, validation: bool = True, precision: str = "bfloat16", **train: Any
    ) -> Plan:
        recipe = Recipe.model_validate({"base_model": "tiny", "data": {"train": "train.jsonl"}} | (document or {}))
        return resolve(
            recipe,
            model=LocalModel(
                name="tiny",
                source="folder",
                path="/models/tiny",
                sha256="b" * 64,
                licence="Apache-2.0",
                architecture="LlamaForCausalLM",
                num_parameters=structure.num_parameters,
                num_embedding_parameters=384 * 32,
                context_length_tokens=512,
                vocabulary_size=384,
                has_chat_template=True,
                template_sha256="c" * 64,
                num_bytes=1,
            ),
            template="chat",
            template_sha256="c" * 64,
            data=DataPlan(
                train=profile("train", **train), validation=profile("validation", 10) if validation else None
            ),
            structure=structure,
            hardware=Hardware(
                cpu_name="a processor",
                num_cores=2,
                num_threads=2,
                memory_bytes=8 << 30,
                memory_available_bytes=6 << 30,
                device="cpu",
                accelerators=(),
                float32_gflops=100.0,
                bfloat16_gflops=400.0,
                precision=precision,  # type: ignore[arg-type]
                why="measured by a test",
            ),
        )

    return make
