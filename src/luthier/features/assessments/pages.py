"""/evaluations/suites/ID and /evaluations/safety/ID: results over many tasks, each with its charts and its answers."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.core.errors import LuthierError, NotFoundError
from luthier.core.results.suite import GateOutcome, SafetyResult, SuiteResult, TaskResult
from luthier.features.assessments.service import gate_of, read_safety, read_suite
from luthier.features.evaluations.view import PageNumber, SamplesAsked, samples_shown
from luthier.ml.charts.judged_rows import concerns_in_words, tone_of
from luthier.ml.evaluation.report.suite_page import gains_plot, task_plots
from luthier.ml.evaluation.result_views import Result, as_evaluation, shade, summary, task_view, tasks_of
from luthier.platform.home.context import Context
from luthier.platform.ui.human_names import HumanNames
from luthier.platform.ui.i18n.environments import decimal_mark_of, words
from luthier.platform.ui.render import is_fragment_request, page_language, render
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter(prefix="/evaluations")
AnyResult = TypeVar("AnyResult", SuiteResult, SafetyResult)


@router.get("/suites/{result_id}")
def show_suite(request: Request, context: HomeContext, caller: Reader, result_id: str) -> Response:
    """The result of a suite: its verdict, all figures, and what the project's gate says of the run now."""
    result = _named(context, caller.project_id, read_suite(context, caller.project_id, result_id))
    word = None if result.verdict is None else result.verdict.word
    values = {"tone": tone_of(word), "word": word or "no verdict", "kind": "suites"}
    return _page(request, result, values | _gate(context, caller.project_id, result.run_id))


@router.get("/safety/{result_id}")
def show_safety(request: Request, context: HomeContext, caller: Reader, result_id: str) -> Response:
    """The result of a safety check, probe by probe."""
    result = _named(context, caller.project_id, read_safety(context, caller.project_id, result_id))
    word, tone = concerns_in_words(len(result.concerns)), "bad" if result.concerns else "quiet"
    values = {"tone": tone, "word": word, "kind": "safety"}
    return _page(request, result, values | _gate(context, caller.project_id, result.run_id))


@router.get("/suites/{result_id}/{task}")
def show_task(
    request: Request,
    context: HomeContext,
    caller: Reader,
    result_id: str,
    task: str,
    asked: SamplesAsked,
    page: PageNumber = 1,
) -> Response:
    """One task of a suite with every answer that was kept; for HTMX its samples alone."""
    result = _named(context, caller.project_id, read_suite(context, caller.project_id, result_id))
    return _task_page(request, result, task, asked, page, "suites")


@router.get("/safety/{result_id}/{task}")
def show_probe(
    request: Request,
    context: HomeContext,
    caller: Reader,
    result_id: str,
    task: str,
    asked: SamplesAsked,
    page: PageNumber = 1,
) -> Response:
    """One probe of a safety check; its answers are folded."""
    result = _named(context, caller.project_id, read_safety(context, caller.project_id, result_id))
    return _task_page(request, result, task, asked, page, "safety")


def _named(context: Context, project_id: str, result: AnyResult) -> AnyResult:
    """The result with the names of runs for systems that are named by their ids; ids and answers stay."""
    return HumanNames(context, project_id).read(_system_names(result)).within(result)


def _system_names(result: Result) -> list[str]:
    return [result.candidate, *(system.name for task in tasks_of(result) for system in task.systems)]


def _page(request: Request, result: Result, values: dict[str, Any]) -> Response:
    found, is_safety = summary(result), isinstance(result, SafetyResult)
    word = words(page_language(request, "evaluation_orders/assessment.html"))
    # Probes are ours and have a name in every language; the tasks of a suite are named by people.
    titles = {task.name: word(task.name.replace("_", " ")) for task in tasks_of(result)} if is_safety else {}
    views = [task_view(result, task) for task in tasks_of(result)]
    values |= {
        "result": result,
        "summary": found,
        "gains": gains_plot(found, titles),
        "sections": [(view, task_plots(view)) for view in views],
        "shade": shade,
        "is_safety": is_safety,
        "current": "/evaluations",
    }
    return render(request, "evaluation_orders/assessment.html", values)


def _task_page(request: Request, result: Result, name: str, asked: dict[str, str], page: int, kind: str) -> Response:
    task = _task(result, name)
    view = task_view(result, task)
    address = f"/evaluations/{kind}/{result.result_id}/{task.name}"
    mark = decimal_mark_of(request)
    samples = samples_shown(as_evaluation(result, task), view.who, asked, page, address, decimal_mark=mark)
    status = 422 if samples["error"] is not None else 200
    if is_fragment_request(request):
        return render(request, "evaluation_orders/samples.html", samples, status=status)
    values = {
        "result": result,
        "view": view,
        "task": task,
        "charts": task_plots(view),
        "shade": shade,
        "kind": kind,
        "is_safety": isinstance(result, SafetyResult),
        "is_asked": bool(request.query_params),
        "current": "/evaluations",
    }
    return render(request, "evaluation_orders/task.html", values | samples, status=status)


def _task(result: Result, name: str) -> TaskResult:
    found = next((task for task in tasks_of(result) if task.name == name), None)
    if found is None:
        raise NotFoundError(
            f"{result.result_id} has no task {name[:100]!r}",
            expected=f"one of {', '.join(task.name for task in tasks_of(result))}",
            do="see the page of the result",
        )
    return found


def _gate(context: Context, project_id: str, run_id: str | None) -> dict[str, Any]:
    """The name of the run, and what the project's gate says of it, or why the gate cannot be read."""
    outcome: GateOutcome | None = None
    run_name = "" if run_id is None else context.run_labels.names([run_id])[run_id]
    try:
        outcome = gate_of(context, project_id, run_id)
    # A broken gate file must not hide the result that it would judge.
    except LuthierError as error:
        return {"gate": None, "gate_error": error, "run_name": run_name}
    return {"gate": outcome, "gate_error": None, "run_name": run_name}
