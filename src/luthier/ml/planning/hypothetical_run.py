"""A hypothetical run, of a model's shape, rows and a method alone; and memory of the catalogue's models by it.

No weights and no rows are needed. To predict the memory of a model its structure is built, which brings torch: the
table of the catalogue is made once (`make models`) and read from then on. A row counts only for the very description
that it was made of; a test makes the table again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from luthier.core.errors import RecipeError, RequestError
from luthier.core.ids import sha256_document
from luthier.core.records.base_model import CatalogEntry, TrainingMemory
from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning import defaults
from luthier.ml.planning.adapter import num_lora_parameters, resolve_targets
from luthier.ml.planning.batch_shapes import Batches
from luthier.ml.planning.devices import accelerators
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.workload import Workload, WorkMethod, precision_on
from luthier.ml.planning.workload_variants import with_method
from luthier.ml.training.methods.rules import LORA_RANK

PADDING_FRACTION: Final = 0.06
"""Padding that batches of like length leave (docs/benchmarks.md)."""

_MAX_ROWS: Final = 10**12
_MAX_STEPS: Final = 10**9


@dataclass(frozen=True, slots=True)
class HypotheticalRun:
    """What is known of a run before there is one. Lengths in tokens; fractions of one.

    Attributes:
        max_tokens: the longest row; None takes four times the mean, as the rows of chats and reviews have it.
        learned_fraction: tokens that a loss is computed at.
        global_batch_size: rows a step, over all devices.
        micro_batch_tokens: None takes what a plan would take on the device.
        num_checkpoints: written in the whole run.
    """

    num_rows: int
    mean_tokens: float
    method: WorkMethod = "lora"
    rank: int = LORA_RANK[0]
    epochs: float = defaults.EPOCHS[0]
    max_tokens: int | None = None
    learned_fraction: float = 0.5
    global_batch_size: int = defaults.GLOBAL_BATCH_SIZE[0]
    micro_batch_tokens: int | None = None
    gradient_checkpointing: bool = False
    num_checkpoints: int = 10

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("num_rows", self.num_rows, 1, _MAX_ROWS),
            ("mean_tokens", self.mean_tokens, 1, 1 << 24),
            ("max_tokens", self.longest_tokens, math.ceil(self.mean_tokens), 1 << 24),
            ("rank", self.rank, 1, 4096),
            ("epochs", self.epochs, 1e-9, 10_000),
            ("learned_fraction", self.learned_fraction, 1e-9, 1.0),
            ("global_batch_size", self.global_batch_size, 1, 1_000_000),
            ("num_checkpoints", self.num_checkpoints, 0, _MAX_STEPS),
            ("micro_batch_tokens", self.micro_batch_tokens or 1, 1, 1 << 31),
        ):
            if not least <= value <= most:
                raise RequestError(
                    f"{name} is {value:,}", expected=f"{least:,g} to {most:,g}", do="correct the description of the run"
                )
        if self.num_steps > _MAX_STEPS:
            raise RequestError(
                f"{self.num_steps:,} steps: {self.num_rows:,} rows, {self.epochs:g} epochs, "
                f"{self.global_batch_size:,} rows a step",
                expected=f"at most {_MAX_STEPS:,} steps",
                do="correct the rows, the epochs or global_batch_size",
            )

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest row."""
        return self.max_tokens if self.max_tokens is not None else max(2, math.ceil(4 * self.mean_tokens))

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        # Rounding must not add a step: 1.1 x 10 is 11.000000000000002.
        return max(1, math.ceil(self.epochs * math.ceil(self.num_rows / self.global_batch_size) - 1e-9))

    @property
    def num_tokens(self) -> float:
        """Tokens that training reads, padding excluded, over all epochs."""
        return self.num_rows * self.mean_tokens * self.epochs


def hypothetical_workload(structure: Structure, run: HypotheticalRun, device: Device) -> Workload:
    """The run of a description on a device, with adapters on every matrix where the method has adapters.

    Raises:
        RequestError: more devices than a step has rows.
        RecipeError: a rank above that of a matrix.
    """
    # A dataset smaller than a batch fills only part of it.
    per_step = min(run.global_batch_size, run.num_rows)
    refuse_idle_devices(per_step, device)
    if run.method != "full":
        num_lora_parameters(structure, resolve_targets(structure, "all-linear", rank=run.rank), run.rank)
    # Weights and adapters are held in what is computed in; only master copies of the optimizer are in float32.
    precision = precision_on(device)
    plain = Workload(
        structure=structure,
        method="full",
        rank=0,
        targets=(),
        dropout=0.0,
        compute=precision,
        base=precision,
        adapters=precision,
        optimizer="master_adamw",
        batches=_batches(run, device, per_step),
        attention="by_length" if device.is_cpu else "flash",
        loss="learned_chunks",
        gradient_checkpointing=run.gradient_checkpointing,
        num_steps=run.num_steps,
        sharding="none" if device.num_devices == 1 else "ddp",
        num_checkpoints=min(run.num_checkpoints, run.num_steps),
    )
    return with_method(plain, run.method, rank=run.rank)


def usual_micro_batch_tokens(device: Device, longest_tokens: int) -> int:
    """The budget of a micro-batch where none is requested."""
    usual = defaults.MICRO_BATCH_TOKENS_CPU if device.is_cpu else defaults.MICRO_BATCH_TOKENS_GPU
    return max(usual, longest_tokens)


def refuse_idle_devices(rows_per_step: int, device: Device) -> None:
    """Raises RequestError where a step has fewer rows than there are devices: the others would wait, and be paid."""
    if device.num_devices > rows_per_step:
        raise RequestError(
            f"{rows_per_step:,} rows a step on {device.num_devices:,} devices",
            expected="at least one row for each device",
            do=f"plan with at most {rows_per_step:,} devices, or raise global_batch_size",
        )


def _batches(run: HypotheticalRun, device: Device, per_step: int) -> Batches:
    """Micro-batches of like length, filled up to the budget, and never more rows in one than a device's share."""
    longest = run.longest_tokens
    budget = run.micro_batch_tokens or usual_micro_batch_tokens(device, longest)
    share = math.ceil(per_step / device.num_devices)
    # Batches of similar lengths: a row is padded to a little more than its own length, never beyond the longest.
    length = min(float(longest), run.mean_tokens / (1 - PADDING_FRACTION))
    in_one = max(1, min(share, int(budget // length)))
    # the largest micro-batch is as full as the budget lets it be, whether of few long rows or of many short ones
    rows = max(1, min(share, budget // longest))
    return Batches(
        peak_rows=rows,
        peak_length=max(longest, min(budget, share * longest) // rows),
        num_tokens=per_step * run.mean_tokens,
        num_computed=per_step * length,
        num_learned=per_step * run.mean_tokens * run.learned_fraction,
        num_micro_batches=math.ceil(share / in_one) * device.num_devices,
        length=length,
    )


ROW_TOKENS: Final = 2048
DEVICE: Final = "h100"
_GIB: Final = float(1 << 30)
TABLE: Final = Path(__file__).with_name("catalog_memory.yaml")
_HEADER: Final = f"""\
# Generated by the planner (`make models`): peak memory of one accelerator in GiB, by method.
# One row of {ROW_TOKENS:,} tokens at a time, activations computed again on the way back, bfloat16, AdamW, adapters of
# rank 16 on every matrix that the planner takes for them, QLoRA over NF4. What one device does not have is spread over
# several. config: digest of the description that a row was made of.
"""
_RUN: Final = HypotheticalRun(
    num_rows=1024,
    mean_tokens=ROW_TOKENS,
    max_tokens=ROW_TOKENS,
    global_batch_size=8,
    micro_batch_tokens=ROW_TOKENS,
    gradient_checkpointing=True,
)


def predicted_memory(structure: Structure) -> TrainingMemory:
    """Peak memory of LoRA, QLoRA and full fine-tuning on one accelerator, however little the largest of them has.

    None for a method that cannot train the model, such as adapters of a rank above that of one of its matrices.
    """
    return TrainingMemory(
        lora_bytes=_bytes(structure, replace(_RUN, method="lora")),
        qlora_bytes=_bytes(structure, replace(_RUN, method="qlora")),
        full_bytes=_bytes(structure, replace(_RUN, method="full")),
    )


def known_memory(entry: CatalogEntry) -> TrainingMemory | None:
    """The figures of an entry from the table; None where it has none for this very description."""
    row = _table().get(entry.name)
    # A changed description makes the row stale: no figure is better than that of another architecture.
    if row is None or not entry.config or row["config"] != _digest(entry):
        return None
    return TrainingMemory(**{f"{name}_bytes": _read(row[name]) for name in ("lora", "qlora", "full")})


def table_text(entries: Iterable[CatalogEntry]) -> str:
    """The table of these entries as it is stored: YAML, a line per entry. Builds the structure of each."""
    lines = []
    for entry in entries:
        memory = predicted_memory(structure_of(entry.config))
        figures = ", ".join(
            f"{name}: {_written(value)}"
            for name, value in (("lora", memory.lora_bytes), ("qlora", memory.qlora_bytes), ("full", memory.full_bytes))
        )
        lines.append(f"{entry.name}: {{{figures}, config: {_digest(entry)}}}\n")
    return _HEADER + "".join(lines)


def _bytes(structure: Structure, run: HypotheticalRun) -> float | None:
    # The most common one: its memory does not matter here, since the peak is predicted whether it fits or not.
    device = next(known for known in accelerators() if known.name == DEVICE)
    try:
        workload = hypothetical_workload(structure, run, device)
    except RecipeError:
        return None
    return predict_memory(workload, device).total_bytes.value


def _digest(entry: CatalogEntry) -> str:
    # 48 bits: enough to notice a change, and short enough for a line of the table.
    return sha256_document(entry.config)[:12]


def _written(value: float | None) -> str:
    # One decimal of a GiB is far finer than the prediction itself is.
    return "null" if value is None else f"{value / _GIB:.1f}"


def _read(gibibytes: float | None) -> float | None:
    return None if gibibytes is None else gibibytes * _GIB


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return found
