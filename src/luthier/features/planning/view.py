"""A plan as a page shows it: what it takes, whether it fits, what to beware of, and why each value is what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from luthier.core.aliases import new_key
from luthier.core.dataset import DatasetProfile, coverage, is_proved, reading_notes, sequence_notes
from luthier.core.plan import DataPlan
from luthier.core.text.counted import counted
from luthier.ml.charts import figures
from luthier.platform.ui.render import usd

_SECTIONS: Final = {
    "base_model": "Base model",
    "data": "Rows",
    "method": "Method",
    "objective": "Objective",
    "training": "Training",
    "evaluation": "Evaluation",
    "budget": "Budget",
    "tracking": "Trackers",
}
_PARTS: Final = {
    "weights": "base model",
    "adapters": "what is trained",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "logits": "logits",
    "generation": "cache during evaluation",
    "runtime": "libraries",
}
_BAR_WIDTH: Final = 320.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One item of a run's cost. value, low, high: as text; low and high are those of its interval."""

    name: str
    value: str
    low: str = ""
    high: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of the bar of memory: where it begins and how wide it is, of `Memory.width`."""

    key: str
    name: str
    num_bytes: float
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory against that of a device. limit: where the device's own memory ends in the bar of `width`."""

    pieces: tuple[Piece, ...]
    total: float
    high: float
    capacity: float
    limit: float
    high_at: float
    width: float = _BAR_WIDTH


@dataclass(frozen=True, slots=True)
class PlanView:
    """What the page shows of a plan.

    Attributes:
        digest: Of the plan.
        headline: Rows, steps and method in one line.
        fits: Whether it fits into memory.
        device: On which it is predicted.
        figures: Time, money, energy and memory.
        memory: The peak, part by part.
        warnings: What may go wrong.
        notes: What the prediction rests on.
        changes: What would make it fit, each with the options (`ask`) that do it.
        devices: Other devices with time and money.
        advice: The method that is advised.
        coverage: Whether the proof of a split covers the held-out rows, as text.
        is_proved: The same as a flag.
        values: Rows of values by section.
        why: Of each value, by its dotted key.
    """

    digest: str
    headline: str
    fits: bool
    device: str
    figures: tuple[Figure, ...]
    memory: Memory
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    changes: tuple[dict[str, Any], ...]
    devices: tuple[dict[str, Any], ...]
    advice: dict[str, Any]
    coverage: str
    is_proved: bool
    values: dict[str, list[dict[str, Any]]]
    why: dict[str, dict[str, Any]]


def view_of(planned: dict[str, Any]) -> PlanView:
    """The view of what `files.references.plan_of` gives, with comparisons."""
    predicted, plan = planned["predicted"], planned["plan"]
    # Stored plans have the names of the first version; the page shows the present ones.
    rows = [row | {"name": new_key(row["name"])} for row in planned["values"]]
    sections: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        section = _SECTIONS.get(row["name"].partition(".")[0], "Others")
        sections.setdefault(section, []).append(row | {"shown": shown(row["value"])})
    return PlanView(
        digest=planned["hash"],
        headline=_headline(planned),
        fits=predicted["fits"],
        device=predicted["device"]["title"],
        figures=_figures(predicted),
        memory=_memory(predicted),
        warnings=(*_budget_warnings(plan, predicted), *_row_warnings(plan["data"])),
        notes=(*_reading_notes(plan["data"]), *predicted["notes"]),
        changes=tuple(predicted["changes"]),
        devices=tuple(_device_summary(device) for device in planned["devices"]),
        advice=planned["advice"],
        coverage=coverage(DataPlan.model_validate(plan["data"])),
        is_proved=is_proved(DataPlan.model_validate(plan["data"])),
        values=sections,
        why=_why(rows),
    )


def shown(value: Any) -> str:
    """A value of a plan in a few characters: numbers as people write them, lists with commas."""
    if value is None:
        return "none"
    # Before int, since bool is a subclass of it.
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        # Four digits are read at a glance without separators.
        return figures.count(value) if value >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(inner)}" for name, inner in value.items())
    text = str(value)
    # Long texts are digests and chat templates, of which the beginning is enough to distinguish them.
    return text if len(text) <= 60 else f"{text[:12]}…"


def range_of(document: dict[str, Any], name: str, words: Any, factor: float = 1.0) -> tuple[str, str, str]:
    """A predicted figure and the ends of its interval, as text; all empty where it is not known.

    Args:
        document: With the figure and its ends, under `name`, `name_low` and `name_high`.
        name: Of the figure.
        words: Formats a number.
        factor: What the numbers are multiplied with first, for another unit.
    """
    keys = (name, f"{name}_low", f"{name}_high")
    found = [document[key] for key in keys if document.get(key) is not None]
    # A figure without its interval would look like one that is exactly known.
    if len(found) < len(keys):
        return ("", "", "")
    value, low, high = (words(number * factor) for number in found)
    # Compared as words: ends that round to the same text are no interval for a reader.
    return (value, "", "") if low == high else (value, low, high)


def _device_summary(device: dict[str, Any]) -> dict[str, Any]:
    """A device with its time and its money as figures."""
    money = range_of(device, "usd", format_money)
    return device | {
        "time": Figure("Time", *range_of(device, "hours", figures.duration, 3600)),
        "money": Figure("Money", money[0] or "not priced", *money[1:]),
    }


def _why(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each value by the dotted key of a recipe; a plan has steps of warm-up where a recipe has their share."""
    found = {row["name"]: row | {"shown": shown(row["value"])} for row in rows}
    if (warmup := found.get("training.num_warmup_steps")) is not None:
        unit = "step" if warmup["value"] == 1 else "steps"
        found["training.warmup_fraction"] = warmup | {"value": None, "shown": f"{warmup['shown']} {unit}"}
    # A plan has the settings of a section as one value, a recipe its name.
    for section, name in (("training.optimizer", "name"), ("training.average", "kind")):
        if (row := found.get(section)) is not None:
            value = row["value"].get(name) if isinstance(row["value"], dict) else row["value"]
            found[f"{section}.{name}"] = row | {"value": value, "shown": shown(value)}
    return found


def format_money(value: float) -> str:
    """US dollars, rounded to cents."""
    return usd(value) if value >= 0.01 else "under 1 cent"


def _headline(planned: dict[str, Any]) -> str:
    training, data, method = (planned["plan"][name] for name in ("training", "data", "method"))
    tokens = figures.short_count(data["train"]["num_tokens"])
    rows = f"{counted(data['train']['num_examples'], 'row')} ({tokens} tokens)"
    if (stream := data.get("stream")) is not None:
        rows = f"about {rows}" if stream["num_rows"] is not None else "number of rows unknown"
    steps = f"{counted(training['num_steps'], 'step')} of {training['global_batch_size']}"
    trained = figures.short_count(method["num_trainable_parameters"])
    return f"{rows}, {steps}; {method['name']} trains {trained} parameters"


def _figures(predicted: dict[str, Any]) -> tuple[Figure, ...]:
    hours = range_of(predicted, "hours", figures.duration, 3600)
    money = range_of(predicted, "usd", format_money)
    largest = predicted.get("energy_kwh_high")
    energy = range_of(predicted, "energy_kwh", lambda kwh: figures.energy(kwh, largest))
    grading = range_of(predicted, "grading_hours", figures.duration, 3600)
    capacity, rate = int(predicted["device"]["memory_bytes"]), predicted["usd_per_device_hour"]
    memory = range_of(predicted, "peak_memory_bytes", lambda value: figures.size(int(value), capacity))
    return (
        Figure("Time", *hours, note=_time_note(predicted)),
        Figure("Money", money[0] or "not priced", *money[1:], note=f"at {usd(rate)} an hour"),
        Figure("Energy", energy[0] or "not known", *energy[1:]),
        Figure("Peak memory", *memory, note=f"of {figures.size(capacity)}"),
        *([Figure("Grading by models", *grading, note="of the time of the steps")] if grading[0] else ()),
    )


def _time_note(predicted: dict[str, Any]) -> str:
    """What the time is of, and how busy this machine is where that widens it."""
    judged = (
        f"evaluation {figures.duration(predicted['judging_hours'] * 3600)} of it"
        if "judging_hours" in predicted
        else ""
    )
    load = predicted.get("load")  # answers that were kept from before have none
    busy = ""
    if load is not None and load["slowdown"] > 1:
        busy = f"other processes use {load['busy_cores']:.1f} of {load['num_cores']} cores now"
    return "; ".join(part for part in (judged or "training, nothing is evaluated", busy) if part)


def _memory(predicted: dict[str, Any]) -> Memory:
    capacity, total = predicted["device"]["memory_bytes"], predicted["peak_memory_bytes"]
    high = predicted["peak_memory_bytes_high"]
    # Both the device's memory and the upper end must be seen, with a little room behind them.
    whole = max(capacity, high) * 1.02
    pieces, x = [], 0.0
    for key, name in _PARTS.items():
        num_bytes = predicted["peak_memory_parts_bytes"].get(key, 0.0)
        width = num_bytes / whole * _BAR_WIDTH
        if num_bytes > 0:
            # Half a pixel at least, so that no part disappears; `x` moves by the true width, so that the sum stays
            # right.
            pieces.append(Piece(key, name, num_bytes, round(x, 2), round(max(width, 0.5), 2)))
            x += width
    scale = _BAR_WIDTH / whole
    return Memory(tuple(pieces), total, high, capacity, round(capacity * scale, 2), round(high * scale, 2))


def _budget_warnings(plan: dict[str, Any], predicted: dict[str, Any]) -> list[str]:
    """Where a cap will, or may, pause the run before its end."""
    budget, told = plan["budget"] or {}, []
    units = {"hours": "h", "usd": "USD", "energy_kwh": "kWh"}
    for name, unit in units.items():
        cap, low, high = budget.get(name), predicted.get(f"{name}_low"), predicted.get(f"{name}_high")
        if cap is None or low is None or high is None or high <= cap:
            continue
        when = "will pause" if low > cap else "may pause"
        told.append(f"the cap of {cap:g} {unit} {when} the run: it is expected to take {low:.2g} to {high:.2g} {unit}")
    return told


def _reading_notes(data: dict[str, Any]) -> list[str]:
    profiles = [data[split] for split in ("train", "validation", "held_out") if data[split] is not None]
    return reading_notes((profile["file"], profile["shape_reason"]) for profile in profiles)


def _row_warnings(data: dict[str, Any]) -> list[str]:
    told = []
    if data["held_out"] is None:
        told.append("no held-out rows: the run ends without a verdict on whether it was worth it")
    if data["num_leaked"]:
        told.append(f"{counted(data['num_leaked'], 'held-out row is', 'held-out rows are')} also in the training rows")
    if data["num_same_prompt"]:
        num, stream = data["num_same_prompt"], data.get("stream")
        rows = "training rows" if stream is None else f"the first {counted(stream['num_sampled'], 'row')}"
        told.append(f"{counted(num, 'held-out row shares its prompt', 'held-out rows share their prompt')} with {rows}")
    if data["num_validation_leaked"]:
        num = data["num_validation_leaked"]
        told.append(f"{counted(num, 'validation row is', 'validation rows are')} also in the training rows")
    for split in ("train", "validation", "held_out"):
        if (profile := data[split]) is None:
            continue
        name = split.replace("_", "-")
        if profile["num_dropped"]:
            told.append(
                f"{name}: {counted(profile['num_dropped'], 'row is', 'rows are')} longer than allowed and left out"
            )
        if profile["num_truncated"]:
            told.append(
                f"{name}: {counted(profile['num_truncated'], 'row is', 'rows are')} longer than allowed and cut"
            )
        told += [note for _, note in sequence_notes(DatasetProfile.model_validate(profile))]
    return told
