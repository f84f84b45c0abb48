"""/runs/compare?run=A&run=B: runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.evaluation import Evaluation, Metric
from luthier.core.run import RunRecord, TrainResult
from luthier.features.runs import views as project_runs
from luthier.features.runs.curves import FIRST_POINTS, MOST_COMPARED, overlaid, role_of
from luthier.features.runs.list import Judged, bill_of, page_of_runs
from luthier.features.runs.series import TRAINING, VALIDATION, RunSeries
from luthier.features.runs.state import Standing, standing
from luthier.ml.charts import figures
from luthier.ml.charts.spec import Axis, Chart, Estimate, Intervals
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_text, run_paths
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter()

LETTERS: Final = "ABCDEF"
_TUNED: Final = "tuned"
_BASE: Final = "base"


def _result(say: Callable[[TrainResult], str | None]) -> Callable[[RunRecord], str | None]:
    return lambda record: None if record.result is None else say(record.result)


_RESULTS: Final[tuple[tuple[str, Callable[[RunRecord], str | None]], ...]] = (
    ("ended because", lambda record: record.stopped_because),
    ("training loss, mean", _result(lambda found: f"{found.train_loss:.4g}")),
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
    run: Annotated[list[str] | None, Query(max_length=MOST_COMPARED)] = None,
) -> Response:
    """Runs side by side; with fewer than two, the runs to choose from."""
    # Without repeats, in the order of the address, which decides letters and colours.
    ids = list(dict.fromkeys(run or ()))
    found = [standing(context, caller, run_id) for run_id in ids]
    # Of the app, so that evaluations stay read from page to page.
    judged: Judged = request.app.state.judged
    for one in found:
        if one.record is None:
            raise RequestError(
                f"run {one.run_id} has not begun", expected="runs that have begun", do="compare it once it trains"
            )
    if len(found) < 2:
        rows = page_of_runs(context, caller, judged).rows
        # A run that waits has nothing to compare.
        known = [row for row in rows if row.standing.record is not None and row.run_id not in ids]
        return render(request, "runs/choose.html", {"chosen": ids, "rows": known, "most": MOST_COMPARED})
    return render(request, "runs/compare.html", _values(context, caller, judged, request.app.state.run_series, found))


def _values(
    context: Context, caller: Caller, judged: Judged, series: RunSeries, found: Sequence[Standing]
) -> dict[str, Any]:
    ids = [one.run_id for one in found]
    records = [one.record for one in found if one.record is not None]
    evaluations = judged.of_runs(ids)
    # Letters, since ids are too long for a legend.
    names = {one.run_id: f"{LETTERS[n]} · {one.method}" for n, one in enumerate(records)}
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
        "comparison": project_runs.compare_runs(context, caller.project_id, ids),
        "bills": [bill_of(context, record) for record in records],
        "charts": charts + _metric_charts(names, evaluations),
        "results": _results(context, records),
        "metrics": _metric_rows(ids, evaluations),
    }


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
        rows = [Estimate(names[one], v.value, v.low, v.high, role_of(ids.index(one))) for one, v in values.items()]
        # Of the first run only: the others may have other bases, and all of them would crowd the chart.
        base = _metric(evaluations.get(next(iter(values))), _BASE, name)
        if base is not None:
            rows.insert(0, Estimate("base model", base.value, base.low, base.high, "base"))
        unit = next(iter(values.values())).unit
        words = name.replace("_", " ")
        charts.append(
            Intervals(
                f"compare-{name}",
                words[:1].upper() + words[1:],
                Axis(words, unit),
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
