"""Use case: write the report of a run from the store."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.run import RunRecord
from luthier.features.planning.quotes import load_quote
from luthier.features.planning.service import Prepared
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import versions

if TYPE_CHECKING:
    from luthier.core.evaluation import Evaluation
    from luthier.ml.data.tokenise.preview import Preview


def write_run_report(
    context: Context,
    record: RunRecord,
    prepared: Prepared,
    evaluation: Evaluation | None,
    *,
    draws_page: bool = True,
) -> Path | None:
    """Write `report.html` and `report.json` into the run's folder; returns the path of the page.

    Args:
        context: of the home.
        record: of the run.
        prepared: its plan and rows.
        evaluation: of its result; None without one.
        draws_page: false writes only `report.json` and returns None; `report_updates` makes the page on request.
    """
    from luthier.ml.evaluation.report import ReportData, write_report

    shown = _shown(prepared)
    data = ReportData(
        record=record,
        plan=prepared.plan,
        events=context.runs.events(record.run_id),
        evaluation=evaluation,
        versions=versions(context),
        example=tuple((span.text, span.learned) for span in shown.spans),
        licence=prepared.model.licence,
        quote=load_quote(context, record.run_id),
        drawn=drawn_answers(context.settings.run_folder(record.run_id)),
    )
    written = write_report(context.settings.run_folder(record.run_id), data, draws_page=draws_page)
    return written if draws_page else None


def drawn_answers(folder: Path) -> list[dict[str, Any]]:
    """Saved answers to the first prompt of the first, the middle and the last step with answers; empty if there are
    none.

    An unreadable file is skipped: the page must not fail because of it.
    """
    files = sorted((folder / "samples").glob("step-*.jsonl"))
    # A dict instead of a set: it removes duplicates but keeps the order. Names are zero-padded, so sorting is by step.
    chosen = dict.fromkeys(files[i] for i in (0, len(files) // 2, -1)) if files else {}
    found: list[dict[str, Any]] = []
    for file in chosen:
        with suppress(OSError, ValueError):
            # Not splitlines: it also splits at U+2028 and U+0085, which JSON leaves unescaped inside a text.
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
            found += [line for line in lines if line["row_id"] == lines[0]["row_id"]]
    return found


def _shown(prepared: Prepared) -> Preview:
    """The first training row in the model's format; for packed texts the first piece of the first block."""
    from luthier.ml.data.tokenise.packing import piece_of
    from luthier.ml.data.tokenise.preview import preview, preview_head_row

    tokenised = prepared.train.tokenised[0]
    row_id, head = piece_of(tokenised.id), prepared.plan.objective.task_head
    example = next(example for example in prepared.train.examples if example.id == row_id)
    if head is not None:
        return preview_head_row(example, tokenised, prepared.template, head)
    return preview(example, tokenised, prepared.template)
