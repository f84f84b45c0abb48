"""A model, a machine and a data set as the planner sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.core.dataset import DatasetProfile
from luthier.core.plan import DataPlan, MethodPlan, Plan
from luthier.core.recipe import Recipe
from luthier.core.records.base_model import LocalModel
from luthier.core.results.cost import Device
from luthier.core.task_head import TaskHead
from luthier.ml.inference.models.structure import Structure, read_structure, structure_of
from luthier.ml.planning.adapter import resolve_targets
from luthier.ml.planning.batch_shapes import Batches
from luthier.ml.planning.hardware import Hardware
from luthier.ml.planning.resolve import resolve
from luthier.ml.planning.workload import Workload
from luthier.ml.training.methods.protocol import load_method
from luthier.ml.training.model import TrainableModel


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
        document: dict[str, Any] | None = None,
        *,
        validation: bool = True,
        precision: str = "bfloat16",
        accelerator: str | None = None,
        device: str | None = None,
        structure: Structure = structure,
        held_out: DatasetProfile | None = None,
        num_processes: int = 1,
        **train: Any,
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
                train=profile("train", **train),
                validation=profile("validation", 10) if validation else None,
                held_out=held_out,
            ),
            structure=structure,
            hardware=Hardware(
                cpu_name="a processor",
                num_cores=2,
                num_threads=2,
                memory_bytes=8 << 30,
                memory_available_bytes=6 << 30,
                device=device or ("cuda" if accelerator else "cpu"),
                accelerators=(accelerator,) if accelerator else (),
                float32_gflops=100.0,
                bfloat16_gflops=400.0,
                memory_gb_per_second=20.0,
                precision=precision,  # type: ignore[arg-type]
                why="measured by a test",
            ),
            num_processes=num_processes,
        )

    return make


_SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "grouped_mm"}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama_untied": {"model_type": "llama"},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 32},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "phi3": {"model_type": "phi3"},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4} | _EXPERTS,
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 4, "moe_intermediate_size": 32} | _EXPERTS,
}


@pytest.fixture(scope="session")
def architecture() -> Callable[..., dict[str, Any]]:
    """The config of a small model of a named architecture, with changes."""
    return lambda name, **changes: _SMALL | ARCHITECTURES[name] | changes


@pytest.fixture(scope="session")
def llama(architecture: Callable[..., dict[str, Any]]) -> Structure:
    """A small Llama."""
    return structure_of(architecture("llama"))


@pytest.fixture(scope="session")
def make_workload() -> Callable[..., Workload]:
    """One micro-batch of `rows` rows of `length` tokens, none of them padding, half of them learned unless said."""

    def make(
        structure: Structure,
        method: str = "lora",
        *,
        rows: int = 4,
        length: int = 48,
        learned: float = 0.5,
        rank: int = 4,
        targets: str | tuple[str, ...] = "all-linear",
        **changes: Any,
    ) -> Workload:
        tokens = float(rows * length)
        batches = Batches(
            peak_rows=rows,
            peak_length=length,
            num_tokens=tokens,
            num_computed=tokens,
            num_learned=tokens * learned,
            num_micro_batches=1,
            length=length,
        )
        is_full = method == "full"
        values: dict[str, Any] = {
            "structure": structure,
            "method": method,
            "rank": 0 if is_full else rank,
            "targets": () if is_full else resolve_targets(structure, targets),
            "dropout": 0.0,
            "compute": "bfloat16",
            "base": "bfloat16",
            "adapters": "bfloat16",
            "optimizer": "master_adamw",
            "batches": batches,
            "attention": "by_length",
            "loss": "learned_chunks",
            "gradient_checkpointing": False,
            "num_steps": 10,
        }
        return Workload(**(values | changes))

    return make


@pytest.fixture(scope="session")
def make_model(architecture: Callable[..., dict[str, Any]]) -> Callable[..., TrainableModel]:
    """The model that a workload describes, with random weights, made ready for training as a run makes it."""

    def make(config: dict[str, Any], workload: Workload, task_head: TaskHead | None = None) -> TrainableModel:
        entries = dict(config)
        made = AutoConfig.for_model(entries.pop("model_type"), **entries)
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(made).to(getattr(torch, workload.compute)).eval()
        method = MethodPlan(
            name=workload.method,  # type: ignore[arg-type]
            rank=workload.rank,
            alpha=8.0,
            dropout=workload.dropout,
            targets=workload.targets,
            modules_to_save=workload.modules_to_save,
            num_trainable_parameters=workload.num_trainable,
        )
        recomputes = workload.gradient_checkpointing
        model = TrainableModel(base, load_method(method), 0, gradient_checkpointing=recomputes, task_head=task_head)
        model.module.train()
        return model

    return make


@pytest.fixture(scope="session")
def device() -> Device:
    """A CPU with round figures."""
    return Device(
        name="cpu",
        title="a processor, 2 threads",
        num_devices=1,
        memory_bytes=8 << 30,
        bfloat16_tflops=1.0,
        float32_tflops=0.25,
        memory_gb_per_second=20.0,
        link_gb_per_second=0.0,
        power_watts=16.0,
        is_cpu=True,
        source="made by a test",
    )
