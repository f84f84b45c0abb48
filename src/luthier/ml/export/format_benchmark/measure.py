"""Have formats measured, each in a process of its own: quality once, speed in rounds that take turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.child_process.process import run_child
from luthier.core.ports import Progress
from luthier.core.records.export import ExportFormat, ExportSource
from luthier.core.records.format_table import Spread
from luthier.ml.export.format_benchmark.asking import Asked, AskedRow, Quality, Speed

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
    """What one format makes of all rows.

    Args:
        format: None for the source.
        folder: of the export.
        source: the model.
        rows: held-out rows.
        max_new_tokens: of each answer.
        label: shown in the progress.
        progress: shows the child process.

    Raises:
        WorkError: the process fails.
        LuthierError: what the process itself reports, such as a missing package.
    """
    asked = Asked(
        what="quality",
        format=format,
        folder=folder,
        source=source,
        rows=tuple(rows),
        max_new_tokens=max_new_tokens,
    )
    return Quality.model_validate(_ask(asked, f"Judging {label}", progress))


def measure_speeds(
    folders: Mapping[str, tuple[ExportFormat | None, str]],
    source: ExportSource,
    rows: Sequence[AskedRow],
    *,
    max_new_tokens: int,
    num_rounds: int,
    progress: Progress,
) -> dict[str, list[Speed]]:
    """The speed of each format in each round, by label.

    Each round measures every format once, each time in a new process and from another format on, so that what slows
    this machine for a while slows all alike.

    Args:
        folders: label -> format (None for the source) and its folder.
        source: the model.
        rows: whose prompts are read.
        max_new_tokens: of each answer.
        num_rounds: how often each format is measured.
        progress: shows the child processes.
    """
    labels, found = list(folders), {label: list[Speed]() for label in folders}
    for number in range(num_rounds):
        # The order rotates, so that no format is always first on a cold or throttled processor.
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
    """Median, least and most of those that there are; None of none."""
    known = [value for value in values if value is not None]
    return Spread(median=statistics.median(known), low=min(known), high=max(known)) if known else None


def _ask(asked: Asked, title: str, progress: Progress) -> Any:
    with progress.task(title, None, ""):
        return run_child(_WORKER, asked.model_dump(mode="json"), title=title)
