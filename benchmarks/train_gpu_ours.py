#!/usr/bin/env python3
"""One measurement of benchmarks/train_gpu.py: this project's own loop over random weights. Prints one JSON document."""

from __future__ import annotations

import json
import statistics
import sys
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

NUM_WARM_UP = 3


def main() -> None:
    """Build the plan as a recipe's would be, fill its model with random weights, and train."""
    from luthier.core.system.process_setup import keep_products_exact

    keep_products_exact()
    request = json.loads(sys.argv[1])
    print(json.dumps(run(request)))


def run(request: dict[str, Any]) -> dict[str, Any]:
    """What is predicted, and unless that is all that is asked for, seconds of the timed steps and peak memory."""
    import torch

    from luthier.ml.inference import accelerator as memory
    from luthier.ml.inference.accelerator import compute_exactly
    from luthier.ml.inference.models.quantised import quantise
    from luthier.ml.planning import hardware
    from luthier.ml.training.equivalence import why_not_compiled, why_not_packed
    from luthier.ml.training.methods.protocol import load_method
    from luthier.ml.training.model import TrainableModel

    if (hardware.measure().device == "cpu") != (request["device"] == "cpu"):
        raise SystemExit("no CUDA device")
    plan, rows, facts = predicted(request)
    if request.get("is_prediction"):
        return facts
    device = plan.training.device
    compute_exactly(device)
    memory.forget_peaks(device)
    held = plan.method.quantisation
    base = random_model(request["shape"], "cpu" if held else device, plan.training.precision)
    if held:
        quantise(base, held, device)
        base = base.to(device)
    model = TrainableModel(
        base.eval(),
        load_method(plan.method),
        0,
        device,
        gradient_checkpointing=plan.training.gradient_checkpointing,
        with_liger=request["system"] != "luthier-no-liger",
    )
    notes = []
    if plan.training.packing and (why := why_not_packed(model)):
        notes.append(f"not packed: {why}")
    packs = plan.training.packing and not notes
    if plan.training.compile and (why := why_not_compiled(model)):
        notes.append(f"not compiled: {why}")
    seconds = step_seconds(plan, model, rows, packs)
    num_tokens = sum(row.num_tokens for row in rows)
    second = statistics.median(seconds)
    return facts | {
        "tokens_per_second": num_tokens / second,
        "step_seconds": seconds,
        "mfu": facts["needed_flops"] / second / facts["peak_flops"],
        "peak_bytes": memory.device_peak_memory_bytes(device),
        "packed": packs,
        "compiled": plan.training.compile,
        "kernels": dict(model.replaced),
        "notes": notes,
        "torch": torch.__version__,
    }


def predicted(request: dict[str, Any]) -> tuple[Any, list[Any], dict[str, Any]]:
    """The plan, the rows of a step, and what is known before it is run.

    needed_flops: of a step, without what is only computed again. Activations are computed again where the peak without
    that is predicted above the memory of the card.
    """
    from model_shapes import SHAPES

    from luthier.ml.inference.models.structure import structure_of
    from luthier.ml.planning import hardware, step_counts
    from luthier.ml.planning.devices import this_machine
    from luthier.ml.planning.memory import predict_memory
    from luthier.ml.planning.workload import workload_of

    machine = hardware.measure()
    card, structure = this_machine(machine), structure_of(SHAPES[request["shape"]])
    rows = rows_of(request, structure.vocabulary_size)
    plan = plan_of(request, rows, structure, machine)
    work = workload_of(plan, structure, card, batches=batches(plan, rows))
    needed = step_counts.step_flops(replace(work, gradient_checkpointing=False)).total
    if request["checkpointing"] == "auto" and predict_memory(work, card).total_bytes.value > card.memory_bytes:
        training = plan.training.model_copy(update={"gradient_checkpointing": True})
        plan, work = plan.model_copy(update={"training": training}), replace(work, gradient_checkpointing=True)
    tflops = card.bfloat16_tflops if plan.training.precision == "bfloat16" else card.float32_tflops
    return (
        plan,
        rows,
        {
            "needed_flops": needed,
            "peak_flops": tflops * 1e12,
            "predicted_peak_bytes": predict_memory(work, card).total_bytes.value,
            "gradient_checkpointing": plan.training.gradient_checkpointing,
            "machine": {"device": card.title, "accelerators": machine.accelerators},
        },
    )


def rows_of(request: dict[str, Any], vocabulary: int) -> list[Any]:
    """The rows of one step, all tokens learned but the first: equal lengths, or drawn evenly from an eighth up."""
    import random

    from luthier.core.dataset import TokenisedExample

    draw, rows, left = random.Random(0), [], request["tokens_a_step"]
    while left >= 2:
        length = (
            request["length"] if request["rows"] == "equal" else draw.randint(request["length"] // 8, request["length"])
        )
        length = max(2, min(length, left))
        ids = array("i", (draw.randrange(vocabulary) for _ in range(length)))
        rows.append(TokenisedExample(f"row:{len(rows)}", ids, b"\0" + b"\1" * (length - 1)))
        left -= length
    return rows


def plan_of(request: dict[str, Any], rows: list[Any], structure: Any, machine: Any) -> Any:
    """The plan of a recipe that asks for the method and leaves the rest to the planner, but for what is measured."""
    from luthier.core.dataset import DatasetProfile, profile_tokens
    from luthier.core.plan import DataPlan
    from luthier.core.recipe import Recipe
    from luthier.core.records.base_model import LocalModel
    from luthier.ml.planning.resolve import resolve

    training = {
        "max_steps": request["num_steps"] + NUM_WARM_UP,
        "global_batch_size": len(rows),
        "micro_batch_tokens": request["tokens_a_step"],
        "shared_prefix": False,
        "gradient_checkpointing": request["checkpointing"] == "true",
    }
    if request["system"] == "luthier-compiled":
        training["compile"] = True
    if request["system"] == "luthier-padded":
        training["packing"] = False
    recipe = {"base_model": request["shape"], "data": {"train": "random"}, "method": {"name": request["method"]}}
    profile = DatasetProfile(
        split="train",
        file="random",
        sha256="0" * 64,
        shape="text",
        shape_reason="random tokens",
        num_rows=len(rows),
        num_dropped=0,
        **profile_tokens(rows),
    )
    local = LocalModel(
        name=request["shape"],
        source="folder",
        path=request["shape"],
        sha256="0" * 64,
        licence="none",
        architecture=request["shape"],
        num_parameters=structure.num_parameters,
        num_embedding_parameters=structure.num_embedding_parameters,
        context_length_tokens=32_768,
        vocabulary_size=structure.vocabulary_size,
        has_chat_template=False,
        template_sha256="0" * 64,
        num_bytes=0,
    )
    return resolve(
        Recipe.model_validate(recipe | {"training": training}),
        model=local,
        template="plain",
        template_sha256="0" * 64,
        data=DataPlan(train=profile),
        structure=structure,
        hardware=machine,
    )


def batches(plan: Any, rows: list[Any]) -> Any:
    """The exact micro-batches of the step."""
    from luthier.ml.planning.batch_shapes import batches_of

    lengths, schedule = [row.num_tokens for row in rows], schedule_of(plan, rows, plan.training.packing)
    step = schedule.step(0)
    return batches_of(
        [[[lengths[i] for i in batch] for batch in step]],
        learned_fraction=1.0,
        shared=[[schedule.shared_tokens(batch) for batch in step]],
    )


def schedule_of(plan: Any, rows: list[Any], packs: bool) -> Any:
    """Every step trains all rows."""
    from luthier.ml.data.tokenise.batches import StepSchedule

    lengths = [row.num_tokens for row in rows]
    return StepSchedule(
        lengths,
        global_batch_size=len(rows),
        micro_batch_tokens=plan.training.micro_batch_tokens,
        order=plan.training.order,
        seed=0,
        packed=lengths if packs else None,
    )


def random_model(shape: str, device: str, precision: str) -> Any:
    """A model of that shape whose weights are drawn where they stay."""
    import torch
    from model_shapes import SHAPES
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(SHAPES[shape])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision), attn_implementation="sdpa")


def step_seconds(plan: Any, model: Any, rows: list[Any], packs: bool) -> list[float]:
    """Seconds of each step but the first few, by the loop's own clock, which waits for the device."""
    from luthier.core.ports import SilentProgress
    from luthier.ml.training.checkpoint import CheckpointStore
    from luthier.ml.training.loop import train
    from luthier.ml.training.objectives.rules import load_objective

    seconds: list[float] = []

    class NoCheckpoints(CheckpointStore):
        """Starts again and leaves nothing behind."""

        def latest(self) -> tuple[None, list[str]]:
            return None, []

        def save(self, state: Any, weights: Any, moments: Any, method: Any = None) -> tuple[Path, int]:  # noqa: ARG002
            return self.folder, 0

    train(
        plan,
        model,
        load_objective(plan.objective),
        [(row,) for row in rows],
        [],
        schedule_of(plan, rows, packs),
        NoCheckpoints(Path(), 1),
        emit=lambda event: seconds.append(event.seconds) if event.kind == "step" else None,
        stop_requested=lambda: None,
        progress=SilentProgress(),
    )
    return seconds[NUM_WARM_UP:]


if __name__ == "__main__":
    main()
