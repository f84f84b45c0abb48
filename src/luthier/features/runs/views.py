"""Use cases: the runs and evaluations of one project, without paths of this machine.

A run belongs to the project of its job; one without a job, made by a command, to the project `default`. Those of other
projects are as if they did not exist, and no error names one of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Evaluation
from luthier.core.ids import is_id
from luthier.core.plan import Plan
from luthier.core.results.evaluation_overview import EvaluationOverview
from luthier.core.tracking import hide_folders
from luthier.features.models.result_files import report_data, report_page
from luthier.features.runs import service as runs
from luthier.features.runs.filter_language import parse_filter
from luthier.features.runs.filter_query import Order
from luthier.features.trackers.service import without_locations
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_page, redact_paths, reference_paths, run_paths

_MAX_LOOKED_THROUGH: Final = 2000


@dataclass(frozen=True, slots=True)
class EvaluationPage:
    """Some evaluations, newest first, and whether there are older ones."""

    evaluations: Sequence[EvaluationOverview]
    has_more: bool


def list_evaluations(
    context: Context, project_id: str, *, words: str = "", word: str = "", after: str | None = None, limit: int = 50
) -> EvaluationPage:
    """Evaluations, newest first.

    Args:
        context: The home.
        project_id: Of the project.
        words: All of them must occur in the run's id, the file's name, or the name of a system or model.
        word: Of the verdict, or `none` for evaluations without one.
        after: Only those older than this evaluation.
        limit: At most this many. With `words` or `word` the newest 2,000 are searched.
    """
    most = _MAX_LOOKED_THROUGH if words or word else limit + 1
    found, places = [], home_paths(context)
    for one in context.evaluations.overviews(project_id, limit=most, after=after):
        shown = EvaluationOverview.model_validate(redact_paths(one.model_dump(mode="json"), places))
        if (not word or word == (one.word or "none")) and _has(shown, words.casefold().split()):
            found.append(shown)
    return EvaluationPage(found[:limit], len(found) > limit)


def read_evaluation(context: Context, project_id: str, evaluation_id: str) -> Evaluation:
    """An evaluation with its samples; texts of models and rows are unchanged.

    Raises:
        NotFoundError: The project has no such evaluation.
    """
    wrong = NotFoundError(
        f"no evaluation {evaluation_id!r}",
        expected="the id of an evaluation of this project",
        do="take the evaluation_id of a run, or see the list of evaluations",
    )
    try:
        found = context.evaluations.read(evaluation_id)
    # The same error as for another project's evaluation, so that ids cannot be probed.
    except NotFoundError:
        raise wrong from None
    if context.evaluations.project_of(evaluation_id) != project_id:
        raise wrong
    return without_paths(context, found)


def without_paths(context: Context, evaluation: Evaluation) -> Evaluation:
    """The same without paths of this machine; samples, which say what rows and models say, stay as they are."""
    # Without samples: a text that a model wrote must not be changed because it looks like a path.
    plain = Evaluation.model_validate(redact_paths(runs.without_samples(evaluation), home_paths(context)))
    systems = tuple(
        shown.model_copy(update={"samples": own.samples})
        for shown, own in zip(plain.systems, evaluation.systems, strict=True)
    )
    return plain.model_copy(update={"systems": systems})


def rows_names(context: Context, project_id: str, held_out_files: Iterable[str]) -> dict[str, str]:
    """What people call files of rows: the dataset that holds them, else the last part of the path."""
    last = {file: file.rsplit("/", 1)[-1] for file in held_out_files}
    # Jobs name a file after its id: file-20261130-115118-6bd96a.csv.
    ids = {file: name.partition(".")[0] for file, name in last.items()}
    known = context.run_entries.dataset_names(project_id, sorted({one for one in ids.values() if is_id(one, "file")}))
    return {file: known[ids[file]].name if ids[file] in known else name for file, name in last.items()}


def _has(one: EvaluationOverview, words: Sequence[str]) -> bool:
    searched = [one.evaluation_id, one.run_id or "", one.held_out_file, one.headline, *one.systems, *one.models]
    text = "\n".join(searched).casefold()
    return all(word in text for word in words)


@dataclass(frozen=True, slots=True)
class RunPage:
    """Some runs, newest first, and whether there are older ones."""

    runs: tuple[dict[str, Any], ...]
    has_more: bool


def list_runs(
    context: Context, project_id: str, *, after: str | None, limit: int, filter_text: str = "", sort: str = ""
) -> RunPage:
    """Runs in an order, newest first where none is given; those behind the run `after`.

    Args:
        context: The home.
        project_id: Of the project.
        after: The last run of the page before; None for the first page.
        limit: The most runs.
        filter_text: A filter; archived runs are there unless it leaves them out.
        sort: A field, with `-` in front for the largest first.

    Raises:
        NotFoundError: There is no run `after`.
        RequestError: The filter or the order cannot be read.
    """
    if after is not None:
        _check(context, project_id, after)
    tree, order = parse_filter(filter_text), Order.parse(sort)
    # Of one state: a run that is deleted in between would have no plan.
    with context.database.snapshot():
        # One more than is shown reveals whether there are older ones.
        found = context.run_entries.page(
            project_id,
            limit=limit + 1,
            before=after,
            tree=tree,
            order=order,
            only_begun=True,
            hides_archived=False,
            is_active=partial(runs.is_active, context),
        ).entries
        ids = [entry.run_id for entry in found[:limit]]
        # All together, since each lists the paths to be removed from its run.
        plans, labels = context.run_entries.plan_documents(ids), context.run_labels.of_runs(ids)
        defaults = context.run_labels.default_names(ids)
    shown = []
    for entry in found[:limit]:
        if (record := entry.record) is None:
            continue
        places = reference_paths(context, json.loads(plans[entry.run_id]))
        document: dict[str, Any] = redact_paths(runs.view_of(context, record).as_json(), places)
        own = labels[entry.run_id]
        shown.append(document | own.as_json() | {"name": own.name or defaults.get(entry.run_id, "")})
    return RunPage(tuple(shown), len(found) > limit)


def show_run(context: Context, project_id: str, run_id: str) -> dict[str, Any]:
    """All that is known of a run, short of the samples of its evaluation.

    Raises:
        NotFoundError: The project has no such run.
    """
    _check(context, project_id, run_id)
    document = without_locations(runs.show_run(context, run_id).as_json())
    # A place on the server says nothing to a client.
    del document["folder"]
    name = document.pop("name")  # a name that someone gave is no path, whatever it looks like
    return _shown(context, document) | {"name": name}


def compare_runs(context: Context, project_id: str, run_ids: Sequence[str]) -> dict[str, Any]:
    """Two runs or more of the project side by side, as `runs.compare_runs`.

    Raises:
        NotFoundError: The project has no such run.
        RequestError: There are fewer than two different runs.
    """
    for run_id in run_ids:
        _check(context, project_id, run_id)
    return _shown(context, runs.compare_runs(context, run_ids).as_json())


def report_of(context: Context, project_id: str, run_id: str) -> str:
    """The report of a run as an HTML page, without places of this machine.

    Raises:
        NotFoundError: The project has no such run, or the run has no report.
    """
    _check(context, project_id, run_id)
    path = report_page(context, run_id)
    try:
        # The report was written for users of this machine, so its paths are removed below.
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise _no_report(run_id) from None
    return redact_page(text, run_paths(context, context.runs.plan(run_id)))


def report_document_of(context: Context, project_id: str, run_id: str) -> dict[str, Any]:
    """The report of a run as a JSON document, without places of this machine.

    Raises:
        NotFoundError: The project has no such run, or the run has no report.
    """
    _check(context, project_id, run_id)
    try:
        document = json.loads(report_data(context, run_id).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise _no_report(run_id) from None
    # A plan of a version without trackers names none of their places.
    if "tracking" in document["plan"]:
        hide_folders(document["plan"])
    found: dict[str, Any] = redact_paths(document, run_paths(context, context.runs.plan(run_id)))
    return found


def _no_report(run_id: str) -> NotFoundError:
    return NotFoundError(
        f"run {run_id} has no report",
        expected="a run that has ended or is paused",
        do="wait until it has, then open the report again",
    )


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events of a run, by step. next_after: the position to ask from next. has_more: whether there are more."""

    events: list[dict[str, Any]]
    next_after: int
    has_more: bool


def run_events(context: Context, project_id: str, run_id: str, *, after: int, limit: int) -> EventPage:
    """The first `limit` events after the position `after`.

    Raises:
        NotFoundError: The project has no such run.
    """
    _check(context, project_id, run_id)
    found, position, has_more = context.runs.page(run_id, after, limit=limit)
    places = run_paths(context, context.runs.plan(run_id))
    return EventPage([redact_paths(event.model_dump(mode="json"), places) for event in found], position, has_more)


def run_verdict(context: Context, project_id: str, run_id: str) -> dict[str, Any]:
    """The verdict of the last evaluation of a run, and the recommended action.

    Raises:
        NotFoundError: The project has no such run, or the run was not evaluated.
    """
    from luthier.ml.evaluation.recommendation import recommendation_document

    _check(context, project_id, run_id)
    found = context.evaluations.list(run_id=run_id, limit=1)
    if not found or found[0].verdict is None:
        raise NotFoundError(
            f"run {run_id} has no verdict",
            expected="a run that was evaluated on held-out rows",
            do="wait until it has ended, or give its recipe held-out rows",
        )
    judged = found[0]
    facts = {"run_id": run_id, "evaluation_id": judged.evaluation_id, "num_rows": judged.num_rows}
    verdict = judged.verdict.model_dump(mode="json")  # type: ignore[union-attr]
    document = verdict | {"recommendation": recommendation_document(judged)}
    return facts | _shown(context, document, context.runs.plan(run_id))


def show_evaluation(
    context: Context, project_id: str, evaluation_id: str, *, with_samples: bool = False
) -> dict[str, Any]:
    """An evaluation with its recommended action, and with all answers where requested.

    Raises:
        NotFoundError: The project has no such evaluation.
    """
    from luthier.ml.evaluation.recommendation import recommendation_document

    found = read_evaluation(context, project_id, evaluation_id)
    document = found.model_dump(mode="json") if with_samples else runs.without_samples(found)
    return document | {"recommendation": recommendation_document(found)}


def _check(context: Context, project_id: str, run_id: str) -> None:
    # Another project's run is answered like one that is not there, so that ids cannot be tried out.
    if not is_id(run_id, "run") or context.runs.project_of(run_id) != project_id:
        raise NotFoundError(
            f"no run {run_id!r}", expected="the id of a run of this project", do="list them: GET /api/v1/runs"
        )


def _shown(context: Context, document: dict[str, Any], plan: Plan | None = None) -> dict[str, Any]:
    found: dict[str, Any] = redact_paths(document, run_paths(context, plan))
    return found
