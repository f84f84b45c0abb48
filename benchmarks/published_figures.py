#!/usr/bin/env python3
"""How far the uncalibrated cost model is off against figures that others have published.

    python benchmarks/published_figures.py [--plot docs/published_figures.svg]

The figures, their sources and what was assumed stand in published_figures.yaml. The model has one factor a class of
device and none for a figure: errors are shown as they are. Prints one JSON document; downloads nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml
from machine import describe

from luthier.core.cost import Device
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning.adapter import resolve_targets
from luthier.ml.planning.batch_shapes import Batches
from luthier.ml.planning.devices import device_of
from luthier.ml.planning.hardware import Hardware
from luthier.ml.planning.predict import predict
from luthier.ml.planning.workload import Workload

TABLE = Path(__file__).with_name("published_figures.yaml")
MEDIAN_ALLOWED = 0.25
_FACTS = ("name", "source", "model", "device", "memory_gib", "memory_gb", "tokens_per_second", "step_seconds")
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
    cli.add_argument("--plot", type=Path, help="write the chart here (.svg or .png)")
    args = cli.parse_args()
    rows = compare()
    document = {"benchmark": "published_figures", "summary": summary(rows), "figures": rows}
    if args.plot:
        from accuracy_chart import draw

        kinds = {"tokens_per_second": ("tokens a second", "published"), "memory": ("peak memory", "published")}
        draw(rows, kinds, args.plot, allowed=MEDIAN_ALLOWED)
    print(json.dumps(document | {"machine": describe()}, indent=2))


def compare() -> list[dict[str, Any]]:
    """Each published figure beside the predicted one; errors are relative, above zero where too much is predicted."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    rows = []
    for figure in table["figures"]:
        entry = table["sources"][figure["source"]]["defaults"] | figure
        device = device_of(entry["device"], _NO_MACHINE)
        work = _workload(entry, table["models"][entry["model"]], device)
        found = predict(work, device)
        row: dict[str, Any] = {"name": figure["name"], "source": figure["source"], "device": entry["device"]}
        if published := _published_bytes(figure):
            counts_tensors = table["sources"][figure["source"]]["counts"] == "tensors"
            outside = found.peak_memory.runtime_bytes if counts_tensors else 0.0
            total = found.peak_memory.total_bytes
            row["memory"] = _beside(published, total.value - outside, total.low - outside, total.high - outside)
            row["memory_parts_gb"] = {k: round(v / 1e9, 2) for k, v in found.peak_memory.parts().items()}
        if published := _published_speed(figure, work):
            speed = found.tokens_per_second
            row["tokens_per_second"] = _beside(published, speed.value, speed.low, speed.high)
        rows.append(row)
    return rows


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


def _workload(entry: dict[str, Any], config: dict[str, Any], device: Device) -> Workload:
    structure = structure_of(config)
    method, length, rows = entry["method"], entry["length"], entry["rows"]
    micro_batches = entry.get("micro_batches", 1) * device.num_devices
    tokens = float(rows * length * micro_batches)
    targets = resolve_targets(structure, entry.get("targets", "all-linear")) if method != "full" else ()
    settings = {
        name: value
        for name, value in entry.items()
        if name not in (*_FACTS, "method", "rank", "targets", "rows", "length", "micro_batches", "dropout")
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
        **settings,
    )


def _published_bytes(figure: dict[str, Any]) -> float | None:
    if "memory_gib" in figure:
        return float(figure["memory_gib"]) * 2**30
    return float(figure["memory_gb"]) * 1e9 if "memory_gb" in figure else None


def _published_speed(figure: dict[str, Any], work: Workload) -> float | None:
    if "step_seconds" in figure:
        return work.batches.num_tokens / float(figure["step_seconds"])
    return float(figure["tokens_per_second"]) if "tokens_per_second" in figure else None


def _beside(published: float, predicted: float, low: float, high: float) -> dict[str, float]:
    figures = {"published": published, "predicted": predicted, "low": low, "high": high}
    return {name: float(f"{value:.4g}") for name, value in figures.items()} | {
        "error": round(predicted / published - 1, 3)
    }


if __name__ == "__main__":
    main()
