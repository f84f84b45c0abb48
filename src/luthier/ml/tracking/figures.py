"""Events, plans and evaluations as trackers have them: figures by name, parameters by name, texts.

Names are those that the Hugging Face trainer has made usual: `train/loss`, `train/learning_rate`, `train/grad_norm`,
`train/epoch`, `train/global_step`, `eval/loss`. What it has no name for is called as in Luthier's own charts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from luthier.core.aliases import new_key
from luthier.core.data_sources import without_queries
from luthier.core.evaluation import Evaluation
from luthier.core.events import BillUpdated, Event, MachineSampled, RunStarted, StepDone, ValidationDone
from luthier.core.ids import sha256_bytes
from luthier.core.plan import Plan
from luthier.core.run import Bill, TrainResult
from luthier.core.text.names import shortened
from luthier.ml.tracking.protocol import Parameter, Point

_MEBIBYTE: Final = 1 << 20
_NOT_IN_A_NAME: Final = re.compile(r"[^\w\-. :/]+")
_MAX_NAME: Final = 240
"""Bytes of a name: a few less than MLflow takes, for a prefix."""
MAX_TEXT: Final = 500
"""Characters of a parameter: the least that a tracker's server takes."""


def values_of(event: Event) -> dict[str, float]:
    """The figures of an event, by name; empty for one that has none. Figures that are not finite are left out."""
    found: dict[str, float] = {}
    match event:
        case StepDone():
            found = {
                "train/loss": event.loss,
                "train/learning_rate": event.learning_rate,
                "train/grad_norm": event.gradient_norm,
                **({} if event.epoch is None else {"train/epoch": event.epoch}),
                "train/global_step": event.step,
                "train/num_tokens": event.num_tokens,
                "train/num_trained_tokens": event.num_trained_tokens,
                "train/step_seconds": event.seconds,
            }
            # A recorded time may be 0 where the clock is coarse.
            if event.seconds > 0:
                found["train/tokens_per_second"] = event.num_tokens / event.seconds
            found |= {f"train/{name}": value for name, value in event.measures.items()}
        case ValidationDone():
            found = {"eval/loss": event.loss, "eval/runtime": event.seconds, "train/global_step": event.step}
            found |= {f"eval/{name}": value for name, value in event.measures.items()}
            found |= {f"eval/loss/{name}": value for name, value in event.loss_by_source.items()}
        case MachineSampled():
            found = _of_machine(event)
        case BillUpdated():
            found = _of_bill(event.bill)
    return {metric_name(name): float(value) for name, value in found.items() if math.isfinite(value)}


def _of_machine(event: MachineSampled) -> dict[str, float]:
    found = {
        # Cores in use over cores that there are; the trackers' charts expect percent.
        "system/cpu_utilization_percentage": 100 * event.machine_cores / max(1, event.num_cores),
        "system/run_cores": event.run_cores,
        "system/run_memory_megabytes": event.run_memory_bytes / _MEBIBYTE,
        "system/system_memory_usage_megabytes": event.machine_memory_bytes / _MEBIBYTE,
    }
    for number, gpu in enumerate(event.gpus):
        of_gpu = {
            "utilization_percentage": None if gpu.utilisation is None else 100 * gpu.utilisation,
            "memory_usage_megabytes": None if gpu.memory_bytes is None else gpu.memory_bytes / _MEBIBYTE,
            "power_usage_watts": gpu.power_watts,
        }
        found |= {f"system/gpu_{number}_{name}": value for name, value in of_gpu.items() if value is not None}
    return found


def _of_bill(bill: Bill) -> dict[str, float]:
    found = {"cost/hours": bill.hours, "cost/tokens": float(bill.tokens)}
    for name, estimate in (("usd", bill.usd), ("energy_kwh", bill.energy_kwh)):
        if estimate is not None:
            found |= {
                f"cost/{name}": estimate.value,
                f"cost/{name}_low": estimate.low,
                f"cost/{name}_high": estimate.high,
            }
    return found


class Clock:
    """When steps ended, in seconds since 1970: events have no time, samples of the machine do.

    Between two samples the durations of the steps are added up, so that figures which are delivered hours later show
    when they were measured. An evaluation between them is not counted: the next sample corrects it.

    Args:
        last: When the last step that was delivered ended; None where that is not known.
        fallback: When the run began.
    """

    def __init__(self, last: float | None, fallback: float) -> None:
        self.last, self._fallback = last, fallback

    def stamped(self, events: Sequence[Event]) -> Iterator[tuple[Event, float]]:
        """Each event with its time."""
        if self.last is None:
            self.last = self._before_first(events)
        for event in events:
            if isinstance(event, StepDone | ValidationDone):
                self.last += event.seconds
            # The only events with a time of day: they correct what the added durations have drifted.
            elif isinstance(event, MachineSampled):
                self.last = event.at
            yield event, self.last

    def _before_first(self, events: Sequence[Event]) -> float:
        """When the first of these events began: back from the first sample of the machine, if there is one."""
        seconds = 0.0
        for event in events:
            if isinstance(event, MachineSampled):
                return event.at - seconds
            if isinstance(event, StepDone | ValidationDone):
                seconds += event.seconds
        return self._fallback


def points_of(events: Sequence[Event], clock: Clock) -> list[Point]:
    """The figures of events, in their order."""
    return [
        Point(event.step, at, values)
        for event, at in clock.stamped(events)
        if not isinstance(event, RunStarted) and (values := values_of(event))
    ]


def parameters_of(run_id: str, plan: Plan) -> dict[str, Parameter]:
    """What a run was asked for (`recipe.`) and what its plan made of it, by dotted names.

    Numbers and truth values stay what they are; all else is text. Folders of this machine are reduced to their last
    part, and addresses have no query, which may hold a signature: trackers are read by others.
    """
    asked = without_queries(plan.recipe.model_dump(mode="json", exclude_none=True, exclude={"tracking"}))
    found: dict[str, Any] = {
        "run_id": run_id,
        "plan_hash": plan.hash,
        "base_model.name": _last_part(plan.base_model.name),
    }
    # Tracker settings are left out: they may name servers and entities of other people.
    found |= {row["name"]: row["value"] for row in plan.shown_values() if row["name"] != "tracking"}
    found |= {f"recipe.{new_key(name)}": value for name, value in _flat(asked)}
    profiles = {"train": plan.data.train, "validation": plan.data.validation, "held_out": plan.data.held_out}
    for split, profile in profiles.items():
        if profile is not None:
            found |= {f"data.{split}.sha256": profile.sha256, f"data.{split}.num_rows": profile.num_rows}
    return {metric_name(name): _parameter(value) for name, value in found.items() if value is not None}


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parameter(value: Any) -> Parameter:
    if isinstance(value, bool | int | float):
        return value
    shown = _without_folders(value)
    text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    return shortened(text, MAX_TEXT)


def _without_folders(value: Any) -> Any:
    """A value with the last part of every path in it."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    return _last_part(value) if isinstance(value, str) else value


def _last_part(text: str) -> str:
    """`/home/me/rows.jsonl` -> `rows.jsonl`."""
    return text.rstrip("/").rpartition("/")[2] if text.startswith(("/", "~/")) else text


def summary_of(result: TrainResult | None, evaluation: Evaluation | None) -> dict[str, float]:
    """The figures of a result and its evaluation, each with the ends of its 95% interval."""
    found: dict[str, float | None] = {}
    if result is not None:
        found = {
            "result/train_loss": result.train_loss,
            "result/plain_train_loss": result.plain_train_loss,
            "result/best_validation_loss": result.best_validation_loss,
            "result/best_step": result.best_step,
            "result/num_steps": result.num_steps,
            "result/num_trained_tokens": result.num_trained_tokens,
            "result/num_trainable_parameters": result.num_trainable_parameters,
            "result/tokens_per_second": result.tokens_per_second,
            "result/train_seconds": result.seconds,
            "result/peak_memory_megabytes": result.peak_memory_bytes / _MEBIBYTE,
        }
        if result.bill is not None:
            found |= _of_bill(result.bill)
    if evaluation is not None:
        for system in evaluation.systems:
            for name, metric in system.metrics.items():
                found |= _interval(f"held_out/{system.name}/{name}", metric.value, metric.low, metric.high)
        for one in evaluation.comparisons:
            name = f"verdict/{one.metric}/{one.candidate} minus {one.baseline}"
            found |= _interval(name, one.difference, one.low, one.high) | {f"{name}_p_value": one.p_value}
    return {
        metric_name(name): float(value) for name, value in found.items() if value is not None and math.isfinite(value)
    }


def _interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def metric_name(name: str) -> str:
    """A name that all trackers take: letters, digits, `_`, `-`, `.`, `:`, `/` and blanks, at most 240 bytes.

    Names of graders, metrics and systems are free text, and MLflow refuses a whole delivery over one name.
    """
    # Parts between slashes are folders to MLflow: none may be empty or lead up.
    plain = "/".join(part for part in _NOT_IN_A_NAME.sub("_", name).split("/") if part.strip("."))
    digest = sha256_bytes(name.encode(errors="replace"))[:8]
    kept = plain.encode()[: _MAX_NAME - 9].decode(errors="ignore")
    return plain if len(plain.encode()) <= _MAX_NAME else f"{kept}_{digest}"


def texts_of(evaluation: Evaluation | None, warnings: Sequence[str]) -> dict[str, str]:
    """The verdict in words, with the figures behind it and what it does not show; warnings of the run."""
    found = {}
    if evaluation is not None and evaluation.verdict is not None:
        verdict = evaluation.verdict
        found = {
            "verdict": verdict.title,
            "verdict_metric": verdict.metric,
            "verdict_headline": verdict.headline,
            "verdict_details": "\n".join(verdict.details),
            "verdict_caveats": "\n".join(verdict.caveats),
        }
    if warnings:
        found["warnings"] = "\n".join(warnings)
    return {name: text for name, text in found.items() if text}
