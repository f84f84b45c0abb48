"""Use case: write the report of a run again, with what it was judged by since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import NotFoundError
from luthier.features.planning.quotes import load_quote
from luthier.platform.home.context import Context


def rewrite_run_report(context: Context, run_id: str) -> list[Path]:
    """Write a run's report again, with its newest suites, its safety check and the gate, and their pages beside it.

    Facts that only the training process had (an example, versions, the licence) come from the existing report.json.

    Returns:
        The pages, the report first.

    Raises:
        NotFoundError: No such run, or it has no report yet.
    """
    from luthier.features.assessments.service import gate_of
    from luthier.features.release_gates.service import newest_safety, newest_suites
    from luthier.ml.evaluation.report import write_report
    from luthier.ml.evaluation.report.assessed import assessed_of
    from luthier.ml.evaluation.report.safety_page import write_safety_page
    from luthier.ml.evaluation.report.suite_page import write_suite_page

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
        quote=load_quote(context, run_id),
        drawn=known.get("drawn", ()),
        assessed=assessed,
    )
    context.runs.update(run_id, report_path=str(page))
    if assessed is None:
        return [page]
    # Suites come first in `results` and the safety check last; zip stops at the suites.
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
