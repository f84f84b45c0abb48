#!/usr/bin/env python3
"""How far the uncalibrated cost model is off against figures that others have published.

    python benchmarks/published_figures.py [--plot docs/published_figures.svg]
    python benchmarks/published_figures.py --table benchmarks/published_scale.yaml [--plot docs/published_scale.svg]

The figures, their sources and what was assumed are in published_figures.yaml (mostly one device) and
published_scale.yaml (8 to 1,024 devices). The model has one factor a class of device and none for a figure: errors are
shown as they are. For several devices each source is left out in turn: the errors of the others are taken for the
model's bias, and what is left of the errors of the source that was left out says how wide an interval must be. Prints
one JSON document; downloads nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from machine import describe

from luthier.core.estimate import Estimate
from luthier.core.results.cost import Device, Layout
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning.adapter import resolve_targets
from luthier.ml.planning.batch_shapes import Batches
from luthier.ml.planning.devices import device_of
from luthier.ml.planning.hardware import Hardware
from luthier.ml.planning.predict import predict
from luthier.ml.planning.workload import Workload

TABLE = Path(__file__).with_name("published_figures.yaml")
MEDIAN_ALLOWED = 0.25
_DEFAULTS = {"attention": "flash", "loss": "all", "optimizer": "adamw", "has_fused_kernels": False}
_FACTS = ("name", "source", "model", "device", "memory_gib", "memory_gb", "tokens_per_second", "step_seconds")
_OF_LAYOUT = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "virtual_stages")
_OWN_NAMES = ("tokens_per_second_a_device", "recomputes", *_OF_LAYOUT)
# `device_of` asks for this machine only where `cpu` is named
_NO_MACHINE = Hardware(
    cpu_name="",
    num_cores=1,
    num_threads=1,
    memory_bytes=1,
    memory_available_bytes=1,
    device="cpu",
    accelerators=(),
    float32_gflops=1.0,
    memory_gb_per_second=20.0,
    bfloat16_gflops=1.0,
    precision="bfloat16",
    why="",
)


def main() -> None:
    """Predict every figure and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--table", type=Path, default=TABLE, help="which figures")
    cli.add_argument("--plot", type=Path, help="write the chart here (.svg or .png)")
    args = cli.parse_args()
    rows = compare(args.table)
    document: dict[str, Any] = {"benchmark": "published_figures", "summary": summary(rows), "figures": rows}
    if left_out := leave_one_source_out(rows):
        document["leave_one_source_out"] = left_out
    if args.plot:
        from accuracy_chart import draw

        kinds = {"tokens_per_second": ("tokens a second", "published"), "memory": ("peak memory", "published")}
        # A panel that is empty for most rows says less than the table in the docs.
        shown = {kind: words for kind, words in kinds.items() if 2 * sum(kind in row for row in rows) >= len(rows)}
        draw(rows, shown, args.plot, allowed=MEDIAN_ALLOWED)
    print(json.dumps(document | {"machine": describe()}, indent=2))


def compare(path: Path = TABLE) -> list[dict[str, Any]]:
    """Each published figure beside the predicted one; errors are relative, above zero where too much is predicted."""
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    models = yaml.safe_load(TABLE.read_text(encoding="utf-8"))["models"] | table["models"]
    used = dict.fromkeys((table["sources"][one["source"]]["defaults"] | one)["model"] for one in table["figures"])
    structures = {name: structure_of(models[name]) for name in used}
    rows = []
    for figure in table["figures"]:
        source = table["sources"][figure["source"]]
        entry = _DEFAULTS | source["defaults"] | figure
        device = device_of(entry["device"], _NO_MACHINE)
        found = _predicted(entry, structures[entry["model"]], device)
        row: dict[str, Any] = {"name": figure["name"], "source": figure["source"], "device": entry["device"]}
        row["num_devices"] = device.num_devices
        row["has_experts"] = structures[entry["model"]].num_experts > 0 or "pipeline_parallel" in entry
        if published := _published_bytes(figure):
            outside = found.runtime_bytes if source["counts"] == "tensors" else 0.0
            total = found.memory
            row["memory"] = _beside(published, total.value - outside, total.low - outside, total.high - outside)
            row["memory_parts_gb"] = found.parts_gb
        if published := _published_speed(figure, found.num_tokens, device):
            speed = found.tokens_per_second
            row["tokens_per_second"] = _beside(published, speed.value, speed.low, speed.high)
        rows.append(row)
    return rows


def leave_one_source_out(
    rows: Sequence[dict[str, Any]], kind: str = "tokens_per_second"
) -> dict[str, dict[str, float]]:
    """How far the figures of each source are off, as a factor, if the others are what the model's bias is known from.

    Of several devices alone; those with experts or a pipeline apart. The bias is the mean of the other sources' mean
    logarithms of predicted over published, so that a source with many figures has no more weight than one with one.
    """
    logs: dict[str, list[tuple[bool, float]]] = {}
    for row in rows:
        if row["num_devices"] > 1 and kind in row:
            one = row[kind]
            found = (row["has_experts"], math.log(one["predicted"] / one["published"]))
            logs.setdefault(row["source"], []).append(found)
    if len(logs) < 2:
        return {}
    means = {source: statistics.fmean(log for _, log in found) for source, found in logs.items()}
    factors: dict[str, dict[str, float]] = {"copies": {}, "experts": {}}
    for source, found_here in logs.items():
        bias = statistics.fmean(mean for other, mean in means.items() if other != source)
        for has_experts, log in found_here:
            into, factor = factors["experts" if has_experts else "copies"], round(math.exp(abs(log - bias)), 3)
            into[source] = max(factor, into.get(source, factor))
    return factors


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst of the errors' sizes, and how many lie inside of the interval."""
    document: dict[str, Any] = {"median_allowed": MEDIAN_ALLOWED}
    for kind in ("memory", "tokens_per_second"):
        found = [row[kind] for row in rows if kind in row]
        sizes = [abs(one["error"]) for one in found]
        document[kind] = {
            "num": len(found),
            "median_error": round(statistics.median(sizes), 3),
            "worst_error": round(max(sizes), 3),
            "num_inside_interval": sum(one["low"] <= one["published"] <= one["high"] for one in found),
        }
    every = [abs(row[kind]["error"]) for row in rows for kind in ("memory", "tokens_per_second") if kind in row]
    return document | {"num": len(every), "median_error": round(statistics.median(every), 3)}


@dataclass(frozen=True, slots=True)
class _Predicted:
    tokens_per_second: Estimate
    memory: Estimate
    runtime_bytes: float
    parts_gb: dict[str, float]
    num_tokens: float


def _predicted(entry: dict[str, Any], structure: Structure, device: Device) -> _Predicted:
    work = _workload(entry, structure, device)
    found = predict(work, device)
    speed, memory = found.tokens_per_second, found.peak_memory.total_bytes
    if entry.get("recomputes") == "half":
        # The mean of none and all: of two steps their seconds, so of two rates the harmonic mean.
        again = predict(replace(work, gradient_checkpointing=True), device)
        speed = _mean(speed, again.tokens_per_second, statistics.harmonic_mean)
        memory = _mean(memory, again.peak_memory.total_bytes, statistics.fmean)
    parts = {name: round(value / 1e9, 2) for name, value in found.peak_memory.parts().items()}
    return _Predicted(speed, memory, found.peak_memory.runtime_bytes, parts, work.batches.num_tokens)


def _mean(one: Estimate, other: Estimate, mean: Any) -> Estimate:
    values = {name: mean([getattr(one, name), getattr(other, name)]) for name in ("value", "low", "high")}
    return Estimate(**values)


def _workload(entry: dict[str, Any], structure: Structure, device: Device) -> Workload:
    method, length, rows = entry["method"], entry["length"], entry["rows"]
    layout = Layout(**{name: entry[name] for name in _OF_LAYOUT if name in entry})
    copies = layout.data_parallel(device.num_devices)
    micro_batches = entry.get("micro_batches", 1) * copies
    tokens = float(rows * length * micro_batches)
    targets = resolve_targets(structure, entry.get("targets", "all-linear")) if method != "full" else ()
    settings = {
        name: value
        for name, value in entry.items()
        if name not in (*_FACTS, *_OWN_NAMES, "method", "rank", "targets", "rows", "length", "micro_batches", "dropout")
    }
    batches = Batches(
        peak_rows=rows,
        peak_length=length,
        num_tokens=tokens,
        num_computed=tokens,
        num_learned=tokens,
        num_micro_batches=micro_batches,
        length=length,
    )
    return Workload(
        structure=structure,
        method=method,
        rank=entry.get("rank", 0) if method != "full" else 0,
        targets=targets,
        dropout=entry.get("dropout", 0.0) if method != "full" else 0.0,
        compute="bfloat16",
        base="nf4" if method == "qlora" else "bfloat16",
        adapters="bfloat16",
        batches=batches,
        num_steps=1,
        gradient_checkpointing=settings.pop("gradient_checkpointing", False),
        sharding=settings.pop("sharding", "fsdp" if copies > 1 else "none"),
        layout=layout,
        **settings,
    )


def _published_bytes(figure: dict[str, Any]) -> float | None:
    if "memory_gib" in figure:
        return float(figure["memory_gib"]) * 2**30
    return float(figure["memory_gb"]) * 1e9 if "memory_gb" in figure else None


def _published_speed(figure: dict[str, Any], num_tokens: float, device: Device) -> float | None:
    if "step_seconds" in figure:
        return num_tokens / float(figure["step_seconds"])
    if "tokens_per_second_a_device" in figure:
        return float(figure["tokens_per_second_a_device"]) * device.num_devices
    return float(figure["tokens_per_second"]) if "tokens_per_second" in figure else None


def _beside(published: float, predicted: float, low: float, high: float) -> dict[str, float]:
    figures = {"published": published, "predicted": predicted, "low": low, "high": high}
    return {name: float(f"{value:.4g}") for name, value in figures.items()} | {
        "error": round(predicted / published - 1, 3)
    }


if __name__ == "__main__":
    main()
