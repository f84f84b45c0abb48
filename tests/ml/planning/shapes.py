"""A 7B model, devices and runs as the planner sees them, made without weights or rows."""

from __future__ import annotations

from functools import cache
from typing import Any

from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning.hypothetical_run import HypotheticalRun, hypothetical_workload
from luthier.ml.planning.inference_cost import Judging
from luthier.ml.planning.workload import Workload


@cache
def seven_billion() -> Structure:
    return structure_of(
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        }
    )


def accelerator(memory_gib: float, *, name: str = "a100-80g", num_devices: int = 1, is_cpu: bool = False) -> Device:
    return Device(
        name=name,
        title=f"a device with {memory_gib:g} GiB",
        num_devices=num_devices,
        memory_bytes=int(memory_gib * 2**30),
        bfloat16_tflops=300.0,
        float32_tflops=20.0,
        memory_gb_per_second=2000.0,
        link_gb_per_second=300.0,
        power_watts=400.0,
        is_cpu=is_cpu,
        source="a test",
    )


def run_of(device: Device, **changes: object) -> Workload:
    values: dict[str, object] = {"num_rows": 10_000, "mean_tokens": 250, "max_tokens": 1000} | changes
    return hypothetical_workload(seven_billion(), HypotheticalRun(**values), device)  # type: ignore[arg-type]


def judging(**changes: Any) -> Judging:
    """A hundred rows of 60 tokens, a third of them the answer, written and scored by three systems."""
    values: dict[str, Any] = {
        "num_rows": 100,
        "systems": (False, False, True),
        "prompt_tokens": 40.0,
        "reference_tokens": 20.0,
        "shot_tokens": 0.0,
        "new_tokens": 40,
        "longest_tokens": 100.0,
        "writes": True,
        "scores": True,
    }
    return Judging(**(values | changes))
