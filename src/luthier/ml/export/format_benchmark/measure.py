"""Measure formats, each in its own process: quality once, speed in interleaved rounds.

Input and output of such a process are JSON documents, so that it loads only the runtime.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from luthier.core.child_process.process import run_child
from luthier.core.frozen_model import FrozenModel
from luthier.core.ports import Progress
from luthier.core.records.export import ExportFormat, ExportSource, Spread


class AskedRow(FrozenModel):
    """One held-out row in tokens of the source.

    Attributes:
        ids: all tokens.
        learned: positions of `ids` that are predicted.
        num_prompt: tokens before the answer, 0 if nothing is generated (plain text).
    """

    ids: tuple[int, ...]
    learned: tuple[int, ...]
    num_prompt: int


class Asked(FrozenModel):
    """The request to a measuring process.

    Attributes:
        what: "quality" for likelihoods and greedy text of every row; "speed" for the speed of prompt processing and
            generation.
        format: the format; None for the source itself, as trained.
        folder: of the export.
        source: the model.
        rows: the rows to measure.
        max_new_tokens: of each answer.
    """

    what: Literal["quality", "speed"]
    format: ExportFormat | None
    folder: str
    source: ExportSource
    rows: tuple[AskedRow, ...]
    max_new_tokens: int


class RowQuality(FrozenModel):
    """A format's output for one row.

    Attributes:
        nll_nats: total over the learned tokens.
        num_correct: learned tokens that had the highest likelihood.
        written: greedily generated tokens.
        is_ended: whether the answer ended before the limit.
    """

    nll_nats: float
    num_correct: int
    written: tuple[int, ...]
    is_ended: bool


class Quality(FrozenModel):
    """The quality results of a format for all rows.

    Attributes:
        runtime: name and version of the runtime.
        rows: results in the order of the request.
    """

    runtime: str
    rows: tuple[RowQuality, ...]


class Speed(FrozenModel):
    """One speed measurement of one format.

    Attributes:
        load_seconds: time to load it.
        first_seconds: time to the first new token, summed over prompts.
        all_seconds: time for the whole answers, summed.
        num_prompt_tokens: tokens of all prompts.
        num_new_tokens: new tokens after the first of each answer.
        peak_memory_bytes: peak resident memory of the process.
        idle_memory_bytes: resident memory before the model is loaded.
    """

    load_seconds: float
    first_seconds: float
    all_seconds: float
    num_prompt_tokens: int
    num_new_tokens: int
    peak_memory_bytes: int
    idle_memory_bytes: int

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt tokens per second, up to the first new token."""
        return self.num_prompt_tokens / self.first_seconds

    @property
    def new_tokens_per_second(self) -> float | None:
        """New tokens per second after the first; None if answers were too short or times too unstable."""
        # Without the first token, whose time is that of reading the prompt.
        seconds = self.all_seconds - self.first_seconds
        return self.num_new_tokens / seconds if self.num_new_tokens and seconds > 0 else None


_WORKER = "luthier.ml.export.format_benchmark.worker:measure"


def measure_quality(
    format: ExportFormat | None,
    folder: str,
    source: ExportSource,
    rows: Sequence[AskedRow],
    *,
    max_new_tokens: int,
    label: str,
    progress: Progress,
) -> Quality:
    """Measure the quality of one format on all rows.

    Args:
        format: the format; None for the source.
        folder: of the export.
        source: the model.
        rows: held-out rows.
        max_new_tokens: of each answer.
        label: shown in the progress.
        progress: shows the child process.

    Raises:
        WorkError: the process fails.
        LuthierError: an error that the process reports, such as a missing package.
    """
    asked = Asked(
        what="quality",
        format=format,
        folder=folder,
        source=source,
        rows=tuple(rows),
        max_new_tokens=max_new_tokens,
    )
    return Quality.model_validate(_ask(asked, f"Evaluating {label}", progress))


def measure_speeds(
    folders: Mapping[str, tuple[ExportFormat | None, str]],
    source: ExportSource,
    rows: Sequence[AskedRow],
    *,
    max_new_tokens: int,
    num_rounds: int,
    progress: Progress,
) -> dict[str, list[Speed]]:
    """Measure the speed of each format in each round, by label.

    Each round measures every format once, in a new process and starting with another format, so that a temporary
    slowdown of the machine affects all formats equally.

    Args:
        folders: label -> format (None for the source) and its folder.
        source: the model.
        rows: the rows whose prompts are used.
        max_new_tokens: of each answer.
        num_rounds: number of measurements per format.
        progress: shows the child processes.
    """
    labels, found = list(folders), {label: list[Speed]() for label in folders}
    for number in range(num_rounds):
        # The order rotates, so that no format is always first on a cold processor.
        first = number % len(labels)
        for label in (*labels[first:], *labels[:first]):
            format, folder = folders[label]
            asked = Asked(
                what="speed",
                format=format,
                folder=folder,
                source=source,
                rows=tuple(rows),
                max_new_tokens=max_new_tokens,
            )
            title = f"Timing {label}, round {number + 1} of {num_rounds}"
            found[label].append(Speed.model_validate(_ask(asked, title, progress)))
    return found


def spread(values: Sequence[float | None]) -> Spread | None:
    """Median, minimum and maximum of the present values; None without values."""
    known = [value for value in values if value is not None]
    # Median and extremes: of three to five rounds no interval could be given.
    return Spread(median=statistics.median(known), low=min(known), high=max(known)) if known else None


def _ask(asked: Asked, title: str, progress: Progress) -> Any:
    with progress.task(title, None, ""):
        return run_child(_WORKER, asked.model_dump(mode="json"), title=title)
