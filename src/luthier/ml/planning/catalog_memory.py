"""What it takes to train the models of the catalogue: predicted by the planner, kept in a table.

To predict it a model's structure is built, which brings torch: the table is made once (`make models`) and read from
then on. A row counts only for the very description that it was made of; a test makes the table again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from luthier.core.digest import sha256_document
from luthier.core.errors import RecipeError
from luthier.core.records.base_model import CatalogEntry, TrainingMemory
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning.devices import accelerators
from luthier.ml.planning.hypothetical_run import HypotheticalRun, hypothetical_workload
from luthier.ml.planning.memory import predict_memory

ROW_TOKENS: Final = 2048
DEVICE: Final = "h100"
_GIB: Final = float(1 << 30)
TABLE: Final = Path(__file__).with_name("catalog_memory.yaml")
_HEADER: Final = f"""\
# Made by the planner (`make models`), not by hand: peak memory of one accelerator in GiB, by method.
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
    """The table of these entries, as it is kept: YAML, a line an entry. Builds the structure of each."""
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
    device = next(known for known in accelerators() if known.name == DEVICE)
    try:
        workload = hypothetical_workload(structure, run, device)
    except RecipeError:
        return None
    return predict_memory(workload, device).total_bytes.value


def _digest(entry: CatalogEntry) -> str:
    return sha256_document(entry.config)[:12]


def _written(value: float | None) -> str:
    return "null" if value is None else f"{value / _GIB:.1f}"


def _read(gibibytes: float | None) -> float | None:
    return None if gibibytes is None else gibibytes * _GIB


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return found
