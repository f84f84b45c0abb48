"""Use case: write the report of a run from what the store knows of it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from luthier.core.evaluation import Evaluation
from luthier.core.run import RunRecord
from luthier.service.context import Context

_NAMED = ("luthier", "torch", "transformers", "peft", "safetensors", "sacrebleu", "rouge-score", "numpy")


def versions() -> dict[str, str]:
    """Versions of what a figure depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _NAMED}


def write_run_report(context: Context, record: RunRecord, evaluation: Evaluation | None) -> Path:
    """Write `report.html` and `report.json` into the run's folder; returns the path of the page."""
    from luthier.evaluate.report import write_report

    return write_report(
        context.settings.runs_folder / record.run_id,
        record=record,
        plan=context.runs.plan(record.run_id),
        events=context.runs.events(record.run_id),
        evaluation=evaluation,
        versions=versions(),
    )
