"""Use cases: the runs and evaluations of one project, as who is not on this machine may see them.

A run belongs to the project of its job; one without a job, made by a command, to the project `default`. Those of other
projects are as if they were not there, and no error names one of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import NotFoundError
from luthier.core.ids import is_id
from luthier.core.plan import Plan
from luthier.features.runs import service as runs
from luthier.features.runs.evaluations import read_evaluation
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_page, redact_paths, reference_paths, run_paths


@dataclass(frozen=True, slots=True)
class RunPage:
    """Some runs, newest first, and whether there are older ones."""

    runs: tuple[dict[str, Any], ...]
    has_more: bool


def list_runs(context: Context, project_id: str, *, after: str | None, limit: int) -> RunPage:
    """Runs, newest first; those older than the run `after`. Raises NotFoundError where there is no such run."""
    if after is not None:
        _check(context, project_id, after)
    # One more than is shown tells whether there are older ones.
    found = context.runs.of_project(project_id, after=after, limit=limit + 1)
    ids = [record.run_id for record in found[:limit]]
    # All at once, since each says which paths are to be taken out of its run.
    plans = context.run_entries.plan_documents(ids)
    shown = []
    for run_id in ids:
        places = reference_paths(context, json.loads(plans[run_id]))
        shown.append(redact_paths(runs.view_run(context, run_id).as_json(), places))
    return RunPage(tuple(shown), len(found) > limit)


def show_run(context: Context, project_id: str, run_id: str) -> dict[str, Any]:
    """All that is known of a run, short of the samples of its evaluation. Raises NotFoundError."""
    _check(context, project_id, run_id)
    document = runs.show_run(context, run_id).as_json()
    # A place on the server says nothing to a client.
    del document["folder"]
    return _shown(context, document)


def compare_runs(context: Context, project_id: str, run_ids: Sequence[str]) -> dict[str, Any]:
    """Two runs or more of the project side by side, as `runs.compare_runs`. Raises NotFoundError, RequestError."""
    for run_id in run_ids:
        _check(context, project_id, run_id)
    return _shown(context, runs.compare_runs(context, run_ids).as_json())


def report_of(context: Context, project_id: str, run_id: str) -> str:
    """The report of a run as an HTML page, without places of this machine. Raises NotFoundError, or if it has none."""
    _check(context, project_id, run_id)
    path = context.settings.run_folder(run_id) / "report.html"
    try:
        # The report was written for whoever sits at this machine, so its paths are taken out below.
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise NotFoundError(
            f"run {run_id} has no report",
            expected="a run that has come to its end, or to a pause",
            do="wait until it has, then open the report again",
        ) from None
    return redact_page(text, run_paths(context, context.runs.plan(run_id)))


def run_events(context: Context, project_id: str, run_id: str, *, after: int) -> tuple[list[dict[str, Any]], int]:
    """The events after the position `after`, and the position to ask from next. Raises NotFoundError."""
    _check(context, project_id, run_id)
    found, position = context.runs.tail(run_id, after)
    places = run_paths(context, context.runs.plan(run_id))
    return [redact_paths(event.model_dump(mode="json"), places) for event in found], position


def run_verdict(context: Context, project_id: str, run_id: str) -> dict[str, Any]:
    """The verdict of the last evaluation of a run. Raises NotFoundError, also where it was not judged."""
    _check(context, project_id, run_id)
    found = context.evaluations.list(run_id=run_id, limit=1)
    if not found or found[0].verdict is None:
        raise NotFoundError(
            f"run {run_id} has no verdict",
            expected="a run that was judged on held-out rows",
            do="wait until it has ended, or give its recipe held-out rows",
        )
    judged = found[0]
    facts = {"run_id": run_id, "evaluation_id": judged.evaluation_id, "num_rows": judged.num_rows}
    verdict = judged.verdict.model_dump(mode="json")  # type: ignore[union-attr]
    return facts | _shown(context, verdict, context.runs.plan(run_id))


def show_evaluation(
    context: Context, project_id: str, evaluation_id: str, *, with_samples: bool = False
) -> dict[str, Any]:
    """An evaluation, with what each system wrote for each row where that is asked for. Raises NotFoundError."""
    found = read_evaluation(context, project_id, evaluation_id)
    return found.model_dump(mode="json") if with_samples else runs.without_samples(found)


def _check(context: Context, project_id: str, run_id: str) -> None:
    # Another project's run is answered like one that is not there, so that ids cannot be tried out.
    if not is_id(run_id, "run") or context.runs.project_of(run_id) != project_id:
        raise NotFoundError(
            f"no run {run_id!r}", expected="the id of a run of this project", do="list them: GET /api/v1/runs"
        )


def _shown(context: Context, document: dict[str, Any], plan: Plan | None = None) -> dict[str, Any]:
    found: dict[str, Any] = redact_paths(document, run_paths(context, plan))
    return found
