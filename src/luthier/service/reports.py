"""Use case: write the report of a run from what the store knows of it."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Evaluation
from luthier.core.run import RunRecord
from luthier.service.context import Context
from luthier.service.plans import Prepared
from luthier.service.quotes import kept_quote

if TYPE_CHECKING:
    from luthier.data.preview import Preview

_NAMED = ("luthier", "torch", "transformers", "peft", "safetensors", "sacrebleu", "rouge-score", "numpy")


def versions(context: Context) -> dict[str, str]:
    """Versions of what a figure depends on, and the machine that it was measured on."""
    from luthier.service.hardware_benchmark import hardware_of

    machine = hardware_of(context)
    return (
        {"python": platform.python_version()}
        | {name: version(name) for name in _NAMED}
        | {
            "machine": f"{machine.cpu_name}, {machine.num_cores} cores, {machine.memory_bytes / 2**30:.0f} GiB",
            "matrix products": machine.why,
        }
    )


def write_run_report(
    context: Context,
    record: RunRecord,
    prepared: Prepared,
    evaluation: Evaluation | None,
    *,
    draws_page: bool = True,
) -> Path | None:
    """Write `report.html` and `report.json` into the run's folder; returns the path of the page.

    draws_page: false writes `report.json` alone and returns None; `rewrite_run_report` draws the page when asked to.
    """
    from luthier.evaluate.report import write_report

    shown = _shown(prepared)
    written = write_report(
        context.settings.run_folder(record.run_id),
        draws_page=draws_page,
        record=record,
        plan=prepared.plan,
        events=context.runs.events(record.run_id),
        evaluation=evaluation,
        versions=versions(context),
        example=tuple((span.text, span.learned) for span in shown.spans),
        licence=prepared.model.licence,
        quote=kept_quote(context, record.run_id),
        drawn=drawn_answers(context.settings.run_folder(record.run_id)),
    )
    return written if draws_page else None


def rewrite_run_report(context: Context, run_id: str) -> list[Path]:
    """Write a run's report anew, with its newest suites, its safety check and the gate; their pages stand beside it.

    What only the training process knew (an example, versions, the licence) is taken from the report.json that is there.
    Returns the pages, the report first. Raises NotFoundError for the run, or where it has no report yet.
    """
    from luthier.evaluate.report import write_report
    from luthier.evaluate.report.assessed import assessed_of
    from luthier.evaluate.report.safety_page import write_safety_page
    from luthier.evaluate.report.suite_page import write_suite_page
    from luthier.service.gates import newest_safety, newest_suites
    from luthier.service.project_assessments import gate_of

    record, folder = context.runs.get(run_id), context.settings.run_folder(run_id)
    known, project_id = _known(folder), context.runs.project_of(run_id) or DEFAULT_PROJECT
    suites = newest_suites(context, project_id, run_id)
    safety, gate = newest_safety(context, project_id, run_id), gate_of(context, project_id, run_id)
    assessed = assessed_of(suites, safety, gate)
    page = write_report(
        folder,
        record=record,
        plan=context.runs.plan(run_id),
        events=context.runs.events(run_id),
        evaluation=None if record.evaluation_id is None else context.evaluations.get(record.evaluation_id),
        versions=known["versions"],
        example=tuple((one["text"], one["learned"]) for one in known["example"]),
        licence=known["licence"],
        quote=kept_quote(context, run_id),
        drawn=known.get("drawn", ()),
        assessed=assessed,
    )
    context.runs.update(run_id, report_path=str(page))
    if assessed is None:
        return [page]
    names = [folder / line.page for line in assessed.results]
    pages = [write_suite_page(suite, path, gate) for suite, path in zip(suites, names, strict=False)]
    return [page, *pages, *([] if safety is None else [write_safety_page(safety, names[-1])])]


def _known(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return {name: found[name] for name in ("versions", "example", "licence")} | {"drawn": found.get("drawn", ())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFoundError(
            f"{folder / 'report.json'} is not there, or cannot be read",
            expected="the report that the run has written when it ended",
            do="wait until it has ended, or train it again",
        ) from error


def drawn_answers(folder: Path) -> list[dict[str, Any]]:
    """Of the first, the middle and the last step that kept answers, those to its first prompt; none where none did.

    A file that cannot be read is left out: the page must not fail of it.
    """
    files = sorted((folder / "samples").glob("step-*.jsonl"))
    chosen = dict.fromkeys(files[i] for i in (0, len(files) // 2, -1)) if files else {}
    found: list[dict[str, Any]] = []
    for file in chosen:
        with suppress(OSError, ValueError):
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            found += [line for line in lines if line["row_id"] == lines[0]["row_id"]]
    return found


def _shown(prepared: Prepared) -> Preview:
    """The first training row as the model gets it; of packed texts the first piece of the first block."""
    from luthier.data.packing import piece_of
    from luthier.data.preview import preview

    tokenised = prepared.train.tokenised[0]
    of_row = {example.id: example for example in prepared.train.examples}
    return preview(of_row[piece_of(tokenised.id)], tokenised, prepared.template)
