"""/runs: what is queued, training and done; one run with its report and controls; runs compared; new points as JSON.

/runs/compare?run=A&run=B shows runs side by side. /runs/RUN_ID/series returns what is new of a run since a position.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, Response

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, RequestError
from luthier.core.evaluation import Evaluation, Metric
from luthier.core.plan import Plan
from luthier.core.run import RunRecord, TrainResult
from luthier.core.text.counted import counted
from luthier.features.evaluations.view import in_language
from luthier.features.runs import run_files
from luthier.features.runs import state as run_control
from luthier.features.runs import views as project_runs
from luthier.features.runs.series import CLOCK, TRAINING, VALIDATION, RunSeries
from luthier.features.runs.state import EvaluationCache, Standing, bill_of, last_step, name_of, page_of_runs, standing
from luthier.features.runs.view import (
    FIRST_POINTS,
    MOST_COMPARED,
    best_marks,
    changing,
    clock_of,
    layout_of,
    machine_charts,
    num_done,
    overlaid,
    role_of,
    rounded,
    run_charts,
    whole_page,
    words,
)
from luthier.features.trackers import job as tracker_job
from luthier.ml.charts import figures
from luthier.ml.charts.judged_rows import metric_axis
from luthier.ml.charts.spec import Chart, IntervalRow, Intervals, OwnName
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_text, run_paths
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.i18n.environments import words as page_words
from luthier.platform.ui.render import Advised, Page, is_fragment_request, page_language, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter()
PAGE = Page(
    "Runs",
    "/runs",
    "read",
    order=30,
    key="r",
    group="train",
    advised=(
        Advised(commands=("runs", "jobs", "train"), calls=("runs", "fine_tuning/jobs")),
        Advised(commands=("import",), title="Import a recipe", address="/runs/import"),
    ),
)


LETTERS: Final = "ABCDEFGH"
_MOST_NAMED: Final = 100
"""Of runs that an address names: those of a page of the list, whose choice may be too large."""
_LEGEND_CHARACTERS: Final = 30
_TUNED: Final = "tuned"
_BASE: Final = "base"


def _result(say: Callable[[TrainResult], str | None]) -> Callable[[RunRecord], str | None]:
    return lambda record: None if record.result is None else say(record.result)


_RESULTS: Final[tuple[tuple[str, Callable[[RunRecord], str | None]], ...]] = (
    ("ended because", lambda record: record.stopped_because),
    ("training loss, mean", _result(lambda found: f"{found.comparable_train_loss:.4g}")),
    ("best validation loss", _result(lambda found: _best(found))),
    ("how it fitted", _result(lambda found: found.fit.title if found.fit else None)),
    ("tokens", _result(lambda found: figures.short_count(found.num_tokens))),
    ("parameters trained", _result(lambda found: figures.short_count(found.num_trainable_parameters))),
    ("tokens a second", _result(lambda found: figures.speed(found.tokens_per_second))),
    ("seconds a step", _result(lambda found: figures.duration(found.seconds_per_step))),
    ("peak memory", _result(lambda found: figures.size(found.peak_memory_bytes))),
)


@router.get("/runs/compare")
def compare(
    request: Request,
    context: HomeContext,
    caller: Reader,
    run: Annotated[list[str] | None, Query(max_length=_MOST_NAMED)] = None,
    find: Annotated[str, Query(max_length=200)] = "",
    choose: Annotated[str, Query(max_length=10)] = "",
) -> Response:
    """Runs side by side; with fewer than two, or to `choose` others, the runs to choose from that `find` occurs in."""
    # Without repeats, in the order of the address, which decides letters and colours.
    ids = list(dict.fromkeys(run or ()))
    if len(ids) > MOST_COMPARED:
        came = counted(len(ids), "run to compare", "runs to compare")
        raise RequestError(came, expected=f"two to {MOST_COMPARED} runs", do="choose fewer of them")
    found = [standing(context, caller, run_id) for run_id in ids]
    # Of the app, so that evaluations stay read from page to page.
    judged: EvaluationCache = request.app.state.judged
    for one in found:
        if one.record is None:
            raise RequestError(
                f"run {one.run_id} has not started", expected="runs that have started", do="compare it once it trains"
            )
    if len(found) < 2 or choose:
        # A run that waits has nothing to compare.
        page = page_of_runs(context, caller, judged, text=find, only_begun=True)
        values = {
            "chosen": [(one.run_id, name_of(context, one)[0]) for one in found],
            "rows": [row for row in page.rows if row.run_id not in ids],
            "has_more": page.older is not None,
            "find": find.strip(),
            "choose": bool(choose),
            "most": MOST_COMPARED,
        }
        return render(request, "runs/choose.html", values)
    template = "runs/compare.html"
    values = _values(context, caller, judged, request.app.state.run_series, found, page_language(request, template))
    return render(request, template, values)


def _values(
    context: Context,
    caller: Caller,
    judged: EvaluationCache,
    series: RunSeries,
    found: Sequence[Standing],
    language: str,
) -> dict[str, Any]:
    ids = [one.run_id for one in found]
    records = [one.record for one in found if one.record is not None]
    evaluations = judged.of_runs(ids)
    # Letters, since ids are too long for a legend, and many runs have no name of their own.
    given = context.run_labels.of_runs(ids)
    names: dict[str, str] = {
        one.run_id: _in_legend(LETTERS[n], given[one.run_id].name or one.method) for n, one in enumerate(records)
    }
    curves = {names[one.run_id]: series.first_look(one.run_id, one.step, FIRST_POINTS) for one in records}
    units = {context.runs.plan(run_id).objective.loss_unit for run_id in ids}
    # Objectives with losses of different units share the chart, but not a unit.
    unit = units.pop() if len(units) == 1 else ""
    charts: list[Chart] = [overlaid(curves, TRAINING, "compare-training", "Training loss", unit)]
    # An empty chart would look like a fault.
    if any(VALIDATION in one.points for one in curves.values()):
        charts.append(overlaid(curves, VALIDATION, "compare-validation", "Validation loss", unit))
    return {
        "runs": list(zip(found, names.values(), map(role_of, range(len(found))), strict=True)),
        "titles": {one.run_id: name_of(context, one)[0] for one in found},
        "comparison": project_runs.compare_runs(context, caller.project_id, ids),
        "bills": [bill_of(context, record) for record in records],
        "charts": charts + _metric_charts(names, evaluations),
        "results": _results(context, records),
        "metrics": _metric_rows(ids, {key: in_language(one, language) for key, one in evaluations.items()}),
    }


def _in_legend(letter: str, name: str) -> OwnName:
    """What a run is called in legends and heads of columns: its letter, and its name as far as there is room."""
    short = name if len(name) <= _LEGEND_CHARACTERS else f"{name[: _LEGEND_CHARACTERS - 1].rstrip()}…"
    return OwnName(f"{letter} · {short}")


def _results(context: Context, records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """What came out of each run, without paths of this machine."""
    places = [run_paths(context, context.runs.plan(one.run_id)) for one in records]
    rows = []
    for name, say in _RESULTS:
        values = [say(one) for one in records]
        shown = [redact_text(v, known) if isinstance(v, str) else v for v, known in zip(values, places, strict=True)]
        rows.append({"name": name, "values": shown})
    return rows


def _metric_rows(ids: Sequence[str], evaluations: dict[str, Evaluation]) -> list[dict[str, Any]]:
    """Each system and metric that any run has, with what each run has of it; None where it has none."""
    names: dict[tuple[str, str], None] = {}
    for evaluation in evaluations.values():
        # A dict keeps the order in which they come, where a set would not.
        names |= {(system.name, metric): None for system in evaluation.systems for metric in system.metrics}
    return [
        {"system": system, "metric": metric, "values": [_metric(evaluations.get(one), system, metric) for one in ids]}
        for system, metric in names
    ]


def _metric_charts(names: dict[str, str], evaluations: dict[str, Evaluation]) -> list[Chart]:
    """One chart a metric that at least two runs have: the tuned model of each, and the base of the first."""
    ids, by_metric = list(names), dict[str, dict[str, Metric]]()
    for run_id in ids:
        for system in evaluations[run_id].systems if run_id in evaluations else ():
            if system.name == _TUNED:
                for name, value in system.metrics.items():
                    by_metric.setdefault(name, {})[run_id] = value
    charts: list[Chart] = []
    for name, values in by_metric.items():
        # A figure of one run alone compares nothing.
        if len(values) < 2:
            continue
        rows = [IntervalRow(names[one], v.value, v.low, v.high, role_of(ids.index(one))) for one, v in values.items()]
        # Of the first run only: the others may have other bases, and all of them would crowd the chart.
        base = _metric(evaluations.get(next(iter(values))), _BASE, name)
        if base is not None:
            rows.insert(0, IntervalRow("base model", base.value, base.low, base.high, "base"))
        unit = next(iter(values.values())).unit
        words = name.replace("_", " ")
        charts.append(
            Intervals(
                f"compare-{name}",
                words[:1].upper() + words[1:],
                metric_axis(name, words, unit),
                rows,
                caption="On held-out rows, with 95% intervals.",
            )
        )
    return charts


def _best(found: TrainResult) -> str | None:
    loss = found.best_validation_loss
    return None if loss is None else f"{loss:.4g} at step {figures.count(found.best_step)}"


def _metric(evaluation: Evaluation | None, system: str, name: str) -> Metric | None:
    if evaluation is None:
        return None
    return next((one.metrics.get(name) for one in evaluation.systems if one.name == system), None)


_PACKED_FROM_BYTES: Final = 1_000


@router.get("/runs/{run_id}/series")
def series(
    request: Request,
    context: HomeContext,
    caller: Reader,
    run_id: str,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
) -> Response:
    """The points since the position `after` of an earlier answer, and what else has changed; 0: all, thinned.

    is_whole: the points replace all earlier ones. from_step: points of later steps are to be dropped first. is_more:
    there are other events than steps. layout: of all series, where the answer is whole.
    """
    found = standing(context, caller, run_id)
    # The same language as the page that shows them.
    say = page_words(page_language(request, "runs/run.html"))
    kept: RunSeries = request.app.state.run_series
    news = kept.news(run_id, after)
    points: dict[str, dict[str, list[Any]]] = {}
    for (chart, name), its_points in news.curves.points.items():
        if (chart, name) == CLOCK:
            continue
        points.setdefault(chart, {})[name] = rounded(its_points)
    document = {
        "position": news.position,
        "is_whole": news.is_whole,
        "from_step": news.curves.from_step,
        "is_more": news.curves.is_more,
        "points": points,
        "layout": layout_of(news.curves),
        "clock": clock_of(found, news.curves),
        "marks": [{"x": mark.x, "name": say(mark.name)} for mark in best_marks(news.curves)],
        "words": {name: say(text) for name, text in words(context, found).items()},
        "num_done": num_done(found, last_step(context, run_id)),
        "standing": f"{found.status} {found.phase} {found.num_ahead}",
        "has_begun": found.record is not None,
        "is_over": found.is_over,
    }
    return _json(request, document)


def _json(request: Request, document: dict[str, Any]) -> Response:
    content = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    headers = {"Cache-Control": "no-store", "Vary": "accept-encoding"}
    if len(content) >= _PACKED_FROM_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        content = gzip.compress(content, compresslevel=5, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Response(content, media_type="application/json", headers=headers)


REPORT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""A report is one file, made to be sent around: style in it, and no script."""


@router.get("/runs/{run_id}")
def show(
    request: Request,
    context: HomeContext,
    caller: Reader,
    run_id: str,
    part: Literal["", "now", "charts"] = "",
) -> Response:
    """The page of a run; for HTMX the current state of a part of it."""
    found = standing(context, caller, run_id)
    plan = None if found.record is None else context.runs.plan(run_id)
    if part == "now" and is_fragment_request(request):
        values = changing(context, caller, request.app.state.judged, found, plan)
        return render(request, "runs/now.html", values | {"is_piece": True})
    if part == "charts" and is_fragment_request(request):
        return render(request, "runs/charts.html", _drawn(request, found, plan))
    return run_page(request, context, caller, found)


def _drawn(request: Request, found: Standing, plan: Plan | None) -> dict[str, Any]:
    """What the template of the charts knows."""
    series: RunSeries = request.app.state.run_series
    # A bounded number of events for the first paint; scripts fetch the whole curves afterwards.
    curves = series.first_look(found.run_id, 0 if found.record is None else found.record.step, FIRST_POINTS)
    return {
        "run": found,
        "charts": [] if plan is None else run_charts(curves, plan.objective.loss_unit, plan.objective.name),
        "machine": machine_charts(curves),
        "steps_per_epoch": plan.training.num_steps_per_epoch if plan and plan.data.has_epochs else None,
        "layout": layout_of(curves),
    }


def run_page(
    request: Request,
    context: Context,
    caller: Caller,
    found: Standing,
    *,
    edited: Mapping[str, Any] | None = None,
    error: LuthierError | None = None,
) -> Response:
    """The whole page of a run.

    Args:
        request: The request that it answers.
        context: The home.
        caller: Who looks at it.
        found: The run.
        edited: What the form of its name and tags held; None: what is stored.
        error: Why that, or another action, was refused; it decides the status of the response.
    """
    plan = None if found.record is None else context.runs.plan(found.run_id)
    name, labels = name_of(context, found)
    values = whole_page(context, caller, request.app.state.judged, found) | _drawn(request, found, plan)
    values |= {
        "name": name,
        "labels": labels,
        "edited": edited or labels.as_json() | {"tags": " ".join(labels.tags)},
        "is_edited": edited is not None,
        "action_error": error,
        "copies": None if plan is None else run_files.copies_of(context, plan),
        "logs": run_files.logs_of(context, found, plan),
        "has_weights": run_files.has_weights(context, found),
        "models": context.tuned_models.of_run(found.run_id),
    }
    return render(request, "runs/run.html", values, status=200 if error is None else status_of(error))


@router.get("/runs/{run_id}/report")
def report(context: HomeContext, caller: Reader, run_id: str) -> Response:
    """The report that the run has written."""
    text = project_runs.report_of(context, caller.project_id, run_id)
    # The report holds text of rows and models: even if some of it were taken for HTML, no script would run.
    return HTMLResponse(text, headers={"Content-Security-Policy": REPORT_POLICY})


@router.post("/runs/{run_id}/pause")
def pause(request: Request, context: HomeContext, caller: Trainer, run_id: str) -> Response:
    """Have it stop after its step."""
    try:
        job = run_control.pause(context, caller, run_id)
    except ConflictError as error:
        return _as_it_is(request, context, caller, run_id, error)
    notice = "It pauses after this step, with a checkpoint." if job.status == "running" else "The run is paused."
    return redirect(request, f"/runs/{run_id}", notice)


@router.post("/runs/{run_id}/resume")
def resume(request: Request, context: HomeContext, caller: Trainer, run_id: str) -> Response:
    """Queue it again."""
    try:
        run_control.resume(context, caller, run_id)
    except ConflictError as error:
        return _as_it_is(request, context, caller, run_id, error)
    return redirect(request, f"/runs/{run_id}", "The run is queued again; it continues from its last checkpoint.")


@router.post("/runs/{run_id}/track")
def track(request: Request, context: HomeContext, caller: Trainer, run_id: str) -> Response:
    """Have a worker deliver what its trackers do not have."""
    try:
        tracker_job.start(context, caller, run_id)
    except ConflictError as error:
        return _as_it_is(request, context, caller, run_id, error)
    return redirect(request, f"/runs/{run_id}", "The rest is delivered by a job.")


@router.post("/runs/{run_id}/cancel")
def cancel(request: Request, context: HomeContext, caller: Trainer, run_id: str) -> Response:
    """End it for good."""
    try:
        job = run_control.cancel(context, caller, run_id)
    except ConflictError as error:
        return _as_it_is(request, context, caller, run_id, error)
    notice = "It ends after this step." if job.status == "running" else "The run is cancelled."
    return redirect(request, f"/runs/{run_id}", notice)


def _as_it_is(request: Request, context: Context, caller: Caller, run_id: str, error: LuthierError) -> Response:
    """The page of a run whose state has changed meanwhile, as in another tab, with the reason on top."""
    return run_page(request, context, caller, standing(context, caller, run_id), error=error)
