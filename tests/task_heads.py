"""Tiny models with a task head: an adapter, or a whole model, with random weights, as a run has made it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from luthier.core.task_head import TaskHead
from luthier.features.evaluations.export_sources import outcome_digest
from luthier.features.models.store import TunedModel
from luthier.features.serving.targets import local_base_models
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.task_head import TaskHeadLayer, save_task_head
from luthier.platform.home.context import Context
from luthier.testing.records import make_plan, make_record, make_result


def random_layer(width: int, num_outputs: int, *, seed: int = 0) -> TaskHeadLayer:
    """A head's matrix that tells inputs apart."""
    layer, generator = TaskHeadLayer(width, num_outputs), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return layer.requires_grad_(False)


def make_head_folder(base: Path, folder: Path, *, is_adapter: bool = True, seed: int = 0, **head: Any) -> TaskHead:
    """Write an adapter over the base, or a copy of it, and a head of random weights beside it.

    Args:
        base: A tiny model.
        folder: Does not exist yet.
        is_adapter: Whether it is an adapter, not a whole model.
        seed: Of all weights.
        head: Fields of `TaskHead` without its width.
    """
    model = load_model(str(base), dtype="float32", attention="sdpa")
    made = TaskHead(width=int(model.config.hidden_size), **head)
    if is_adapter:
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(str(folder))
    else:
        shutil.copytree(base, folder)
    layer = random_layer(made.width, made.num_outputs, seed=seed) if made.num_outputs else None
    save_task_head(folder, made, layer)
    return made


def add_head_run(
    context: Context, base: str, letter: str, *, is_adapter: bool = True, seed: int = 0, **head: Any
) -> tuple[str, str, Path]:
    """A run that has made such a model over a base of the home: its id, the name of the tuned model, and the folder."""
    local = local_base_models(context)[base]
    run_id = f"run-20261125-09300{ord(letter) % 10}-{letter * 6}"
    folder = context.settings.run_folder(run_id) / ("adapter" if is_adapter else "model")
    folder.parent.mkdir(parents=True)
    make_head_folder(Path(local.path), folder, is_adapter=is_adapter, seed=seed, **head)
    plan = make_plan()
    named = plan.base_model.model_copy(update={"name": local.name, "path": local.path, "sha256": local.sha256})
    training = plan.training.model_copy(update={"precision": "float32"})
    digest = outcome_digest(sorted(folder.glob("*.safetensors")))
    result = make_result().model_copy(update={"adapter_path": str(folder), "adapter_sha256": digest})
    context.runs.create(
        make_record(run_id, status="succeeded", result=result),
        plan.model_copy(update={"base_model": named, "training": training}),
    )
    tuned = f"ft:{base}:default:head:{letter}"
    context.tuned_models.add(
        TunedModel(
            model_id=tuned,
            project_id="default",
            job_id=f"ftjob-{letter}",
            run_id=run_id,
            base_model=base,
            adapter_path=str(folder),
            step=None,
            checkpoint_id=None,
        )
    )
    return run_id, tuned, folder
