"""What plan_accuracy.py measured beside what the cost model predicts, calibrated on three of the configurations."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from luthier.core.estimate import Estimate
from luthier.core.plan import Plan
from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning.batch_shapes import batches_of, num_computed_tokens, splits_by_length
from luthier.ml.planning.predict import Calibration, Measurement, fit, predict
from luthier.ml.planning.workload import workload_of

MEDIAN_ALLOWED, WORST_ALLOWED, MEMORY_UNDER_ALLOWED = 0.10, 0.25, 0.05


def report(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Every configuration that did not calibrate: measured, predicted, its interval and the error; and the bounds."""
    device = _device([Device.model_validate(one["device"]) for one in measured])
    made = {one["configuration"]["name"]: _measurement(one, device) for one in measured}
    used = [m for name, m in made.items() if name.startswith("calibrate")]
    found = fit(device, used)
    rows = []
    for one in measured:
        name = one["configuration"]["name"]
        if not name.startswith("calibrate"):
            row = _row(name, made[name], device, found)
            rows.append(row | {"others_fraction": round(statistics.median(one["others_fractions"][1:]), 3)})
    return {
        "benchmark": "plan_accuracy",
        "device": device.model_dump(mode="json"),
        "num_calibrating": len(used),
        "calibration": found.model_dump(mode="json"),
        "summary": _summary(rows),
        "configurations": rows,
    }


def _device(seen: list[Device]) -> Device:
    """This machine with the middle of the rates that the processes measured, each at its own moment."""
    names = ("bfloat16_tflops", "float32_tflops", "memory_gb_per_second")
    return seen[0].model_copy(update={name: statistics.median(getattr(one, name) for one in seen) for name in names})


def _measurement(one: dict[str, Any], device: Device) -> Measurement:
    plan, steps = Plan.model_validate(one["plan"]), one["steps"]
    lengths = [[[row[0] for row in batch] for batch in step] for step in steps]
    shared, apart = one["shared"], splits_by_length(plan.objective)
    sizes = [
        sum(num_computed_tokens(batch, prefix, apart=apart) for batch, prefix in zip(step, prefixes, strict=True))
        for step, prefixes in zip(lengths, shared, strict=True)
    ]
    pace = statistics.median(t / size for t, size in zip(one["step_seconds"][1:], sizes[1:], strict=True))
    rows = [row for step in steps[1:] for batch in step for row in batch]
    learned = sum(row[1] for row in rows) / sum(row[0] for row in rows)
    timed = batches_of(lengths[1:], learned_fraction=learned, shared=shared[1:], apart=apart)
    whole = batches_of(lengths, learned_fraction=learned, shared=shared, apart=apart)
    batches = replace(timed, peak_rows=whole.peak_rows, peak_length=whole.peak_length, other_peaks=whole.other_peaks)
    work = workload_of(plan, read_structure(plan.base_model.path), device, batches=batches)
    return Measurement(work, pace * statistics.mean(sizes[1:]), one["peak_memory_bytes"])


def _row(name: str, made: Measurement, device: Device, found: Calibration) -> dict[str, Any]:
    predicted, before = predict(made.workload, device, calibration=found), predict(made.workload, device)
    return {
        "name": name,
        "step_seconds": _beside(made.step_seconds, predicted.step_seconds, before.step_seconds),
        "peak_memory_bytes": _beside(
            made.peak_memory_bytes, predicted.peak_memory.total_bytes, before.peak_memory.total_bytes
        ),
    }


def _beside(measured: float, predicted: Estimate, before: Estimate) -> dict[str, float]:
    figures = {"measured": measured, "predicted": predicted.value, "low": predicted.low, "high": predicted.high}
    return {name: float(f"{value:.4g}") for name, value in figures.items()} | {
        "error": round(predicted.value / measured - 1, 3),
        "error_uncalibrated": round(before.value / measured - 1, 3),
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {"num_configurations": len(rows)}
    for kind in ("step_seconds", "peak_memory_bytes"):
        found = [row[kind] for row in rows]
        errors = [one["error"] for one in found]
        document[kind] = {
            "median_error": round(statistics.median(map(abs, errors)), 3),
            "worst_error": max(errors, key=abs),
            "most_under": min(errors),
            "num_inside_interval": sum(one["low"] <= one["measured"] <= one["high"] for one in found),
            "median_error_uncalibrated": round(statistics.median(abs(one["error_uncalibrated"]) for one in found), 3),
        }
    sizes = [document[kind] for kind in ("step_seconds", "peak_memory_bytes")]
    holds = all(s["median_error"] <= MEDIAN_ALLOWED and abs(s["worst_error"]) <= WORST_ALLOWED for s in sizes)
    document["bounds_hold"] = holds and document["peak_memory_bytes"]["most_under"] >= -MEMORY_UNDER_ALLOWED
    return document
