"""The price of formats: what each export of one model costs and what it loses, side by side with the model itself."""

from __future__ import annotations

from typing import Literal

from luthier.core.evaluation import Comparison, SystemResult
from luthier.core.frozen_model import FrozenModel
from luthier.core.records.export import ExportFormat, ExportPrecision, ParityReport

SOURCE_LABEL = "source"
"""What the model itself is called in a table of formats: as it was trained, in transformers."""


class Spread(FrozenModel):
    """A figure measured several times.

    Attributes:
        median: the middle one.
        low: the least.
        high: the most.
    """

    median: float
    low: float
    high: float


class FormatPrice(FrozenModel):
    """One format of a model.

    Attributes:
        label: `gguf:q4_k_m`, or "source".
        format: the format; None for the source.
        precision: how weights are held.
        status: `missing` where the format cannot hold the model or its runtime is not installed.
        reason: why it is missing, or why the proof of a measured export failed.
        runtime: what ran it.
        num_bytes: of the files that the runtime reads (weights, tokenizer, config).
        peak_memory_bytes: of the process that runs it, median over the rounds, mapped files among it.
        idle_memory_bytes: of the same process before the model was loaded.
        load_seconds: loading the model.
        prompt_tokens_per_second: tokens of the prompt up to the first new one, of one request at a time.
        new_tokens_per_second: new tokens after the first one, of one request at a time.
        quality: its figures on the held-out rows.
        comparisons: format minus source on the same rows, paired.
        parity: the proof of the export; None where none was made.
        is_recommended: false where quality was lost beyond doubt (`losses` says what); None where it was not measured.
        losses: what was lost beyond doubt, a sentence each.
        is_on_front_size: whether no other format is as good and smaller.
        is_on_front_speed: whether no other format is as good and faster.
    """

    label: str
    format: ExportFormat | None
    precision: ExportPrecision
    status: Literal["measured", "missing"] = "measured"
    reason: str = ""
    runtime: str = ""
    num_bytes: int = 0
    peak_memory_bytes: int = 0
    idle_memory_bytes: int = 0
    load_seconds: Spread | None = None
    prompt_tokens_per_second: Spread | None = None
    new_tokens_per_second: Spread | None = None
    quality: SystemResult | None = None
    comparisons: tuple[Comparison, ...] = ()
    parity: ParityReport | None = None
    is_recommended: bool | None = None
    losses: tuple[str, ...] = ()
    is_on_front_size: bool = False
    is_on_front_speed: bool = False


class FormatTable(FrozenModel):
    """All formats that were requested, the source first.

    Attributes:
        name: the model that was exported.
        base_name: its base model.
        data_file: the file of held-out rows.
        data_sha256: its digest.
        num_rows: held-out rows that quality is measured on.
        num_timed: prompts that speed is measured on.
        num_rounds: rounds; each format runs once a round, each time in a new process.
        num_threads: CPU threads of each runtime.
        max_new_tokens: most tokens of an answer.
        metric: what quality is judged by, fixed by rule beforehand.
        prices: each format.
        created_at: UTC, ISO 8601.
        machine: what it was measured on, by name.
        seconds: wall time of everything.
        report_path: its report; None before.
    """

    name: str
    base_name: str
    data_file: str
    data_sha256: str
    num_rows: int
    num_timed: int
    num_rounds: int
    num_threads: int
    max_new_tokens: int
    metric: str
    prices: tuple[FormatPrice, ...]
    created_at: str
    machine: dict[str, str]
    seconds: float
    report_path: str | None = None
