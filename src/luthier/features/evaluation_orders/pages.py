"""/evaluations: stored verdicts with their samples, and the evaluations that the server runs as jobs.

/evaluations/new orders one, /evaluations/orders/JOB shows its progress, /evaluations/ID its verdict, figures and
samples, /evaluations/ID/alternative what is recommended in place of the tuned model.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError
from luthier.core.evaluation import Evaluation, VerdictWord
from luthier.core.ids import is_id
from luthier.core.text.names import distinct_names
from luthier.core.text.written_numbers import typed_whole
from luthier.features.assessments import service as project_assessments
from luthier.features.datasets.service import get_version
from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.evaluation_orders.service import OrderKind, OrderView
from luthier.features.evaluations import view as judged
from luthier.features.evaluations.alternative import alternative_of
from luthier.features.evaluations.view import PageNumber, SamplesAsked, in_language, listed_in_language, samples_shown
from luthier.features.model_cards import service as project_models
from luthier.features.planning.currency import project_currency
from luthier.features.roi.three_questions import QuestionsAsked, WorthPart, worth_part
from luthier.features.run_drafts import choices as draft_choices
from luthier.features.runs.next_steps import next_steps
from luthier.features.runs.state import datasets_of
from luthier.features.runs.views import list_evaluations, read_evaluation, rows_names
from luthier.ml.charts.judged_rows import forgetting_rows, tone_of
from luthier.ml.evaluation.prompt_views import prompt_rows
from luthier.ml.evaluation.result_views import Roles, roles, shade
from luthier.ml.evaluation.verdict_view import verdict_view
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import shown_failure
from luthier.platform.jobs.twins import is_joined
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.human_names import HumanNames
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.job_pages import changed, is_unchanged, unchanged
from luthier.platform.ui.render import Advised, Page, is_fragment_request, page_language, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer, one_state

router = APIRouter(prefix="/evaluations")

_MAX: Final = 100
_MAX_SUITES: Final = 50
_MAX_NAMED: Final = 1_000
"""Of models in the form: the service knows how many a comparison may have, and the form keeps its choices then."""
_Name = Annotated[str, Form(max_length=1024)]


@router.get("/new")
def new(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    model: Annotated[str, Query(max_length=1024)] = "",
    kind: OrderKind = "rows",
    suite: Annotated[str, Query(max_length=1024)] = "",
) -> Response:
    """The form."""
    given = {"candidate": model, "kind": kind, "suite": suite, "rows": _own_rows(context, caller, model)}
    return _form_page(request, context, caller, given)


@router.post("/new")
def start(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    kind: Annotated[OrderKind, Form()] = "rows",
    candidate: _Name = "",
    against: Annotated[list[str] | None, Form(max_length=_MAX_NAMED)] = None,
    rows: _Name = "",
    most_rows: Annotated[str, Form(max_length=20)] = "",
    suite: _Name = "",
    suite_text: Annotated[str, Form(max_length=200_000)] = "",
    probes: Annotated[Literal["default", "full"], Form()] = "default",
    allow_leakage: Annotated[bool, Form()] = False,
) -> Response:
    """Queue it, and lead on to its page."""
    given = {
        "kind": kind,
        "candidate": candidate,
        "against": against or [],
        "rows": rows,
        "most_rows": most_rows,
        "suite": suite,
        "suite_text": suite_text,
        "probes": probes,
        "allow_leakage": allow_leakage,
    }
    began = context.access.now()
    try:
        file_id = rows if kind == "rows" else suite
        if kind == "suite" and suite_text.strip():
            file_id = evaluation_orders.keep_suite(context, caller, suite_text).file_id
        made = evaluation_orders.start(
            context,
            caller,
            kind,
            candidate,
            against=against or (),
            file_id=file_id or None,
            probes=probes,
            most_rows=_number(most_rows, decimal_mark_of(request)) if kind == "rows" else None,
            allow_leakage=allow_leakage,
            joins=True,
        )
    except LuthierError as error:
        return _form_page(request, context, caller, given | {"error": error})
    words = "The evaluation is queued: a worker of this server will run it."
    if is_joined(made.job, began):
        words = "The same evaluation was requested before and has not ended; it is shown here."
    return redirect(request, f"/evaluations/orders/{made.job.job_id}", words)


@router.get("/orders/{job_id}")
def show(request: Request, context: HomeContext, caller: Reader, job_id: str, after: str = "") -> Response:
    """How far it is; for HTMX its content alone. after: what was seen last; nothing is sent (204) while that holds."""
    view = evaluation_orders.show_order(context, caller, job_id)
    if is_unchanged(request, after, view.mark):
        return unchanged()
    return _order_page(request, context, view)


@router.post("/orders/{job_id}/cancel")
def cancel(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """Give it up."""
    return _done(request, context, caller, job_id, evaluation_orders.cancel)


@router.post("/orders/{job_id}/retry")
def retry(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """Run it again, behind the answers that it has stored."""
    return _done(request, context, caller, job_id, evaluation_orders.retry)


def _done(request: Request, context: Context, caller: Caller, job_id: str, do: Any) -> Response:
    def show_again(error: ConflictError) -> Response:
        return _order_page(request, context, evaluation_orders.show_order(context, caller, job_id), error)

    return changed(request, f"/evaluations/orders/{job_id}", lambda: do(context, caller, job_id), show_again)


def _own_rows(context: Context, caller: Caller, candidate: str) -> str:
    """The file with the held-out rows of a run, of which it may have evaluated a part; empty where it is no dataset."""
    try:
        plan = context.runs.plan(candidate) if is_id(candidate, "run") else None
    except NotFoundError:
        return ""
    if plan is None or plan.data.held_out is None:
        return ""
    known = datasets_of(context, caller, plan).get(plan.data.held_out.sha256)
    return "" if known is None else get_version(context, caller, known.dataset_id, known.version).file_id


def _form_page(request: Request, context: Context, caller: Caller, given: dict[str, Any]) -> Response:
    tuned, _ = project_models.list_tuned(context, caller, limit=_MAX)
    suites, _ = files.list_files(context, caller.project_id, limit=_MAX, order="desc")
    error = given.get("error")
    values = {
        "tuned": tuned,
        "run_names": distinct_names(context.run_labels.names([view.record.run_id for view in tuned])),
        "bases": [view for view in project_models.list_bases(context, caller.project_id) if view.is_here],
        "choices": draft_choices.file_choices(context, caller),
        "suites": [one for one in suites if one.filename.endswith((".yaml", ".yml"))][:_MAX_SUITES],
        "suite_names": distinct_names({one.file_id: one.filename for one in suites}),
        "given": given,
        "error": error,
        "current": "/evaluations",
    }
    return render(request, "evaluation_orders/new.html", values, status=status_of(error) if error else 200)


def _order_page(request: Request, context: Context, view: OrderView, error: LuthierError | None = None) -> Response:
    failure = shown_failure(context, view.job)
    names = HumanNames(context, view.job.project_id).read((view.order.candidate, *view.order.against))
    values: dict[str, Any] = {"view": names.within(view), "mark": view.mark}
    values |= {"failure": failure, "error": error, "current": "/evaluations"}
    template = "evaluation_orders/order_state.html" if is_fragment_request(request) else "evaluation_orders/order.html"
    return render(request, template, values, status=status_of(error) if error else 200)


def _number(text: str, mark: str) -> int | None:
    if not text.strip():
        return None
    try:
        found = typed_whole(text, mark)
    except ValueError:
        found = 0
    if not 0 < found < 10**12:
        raise RequestError(f"{text!r} rows at most", expected="a whole number from 1 on", do="correct it, or leave it")
    return found


PAGE = Page(
    "Evaluations",
    "/evaluations",
    "read",
    order=50,
    key="e",
    group="evaluate",
    advised=(
        Advised(commands=("eval",), title="Evaluate a model", address="/evaluations/new"),
        Advised(commands=("judge",), title="Judges", address="/evaluations/judges"),
    ),
    elsewhere=("/worth",),
)

_LIST: Final = 50
_WORDS: Final = (*get_args(VerdictWord), "none")
_Text = Annotated[str, Query(max_length=500)]


@router.get("")
@one_state
def index(
    request: Request, context: HomeContext, caller: Reader, q: _Text = "", verdict: _Text = "", after: _Text = ""
) -> Response:
    """The list, newest first."""
    word = verdict if verdict in _WORDS else ""
    page = list_evaluations(context, caller.project_id, words=q, word=word, after=after or None, limit=_LIST)
    older = ""
    if page.has_more:
        last = page.evaluations[-1].evaluation_id
        older = "?" + urlencode({k: v for k, v in {"q": q, "verdict": word, "after": last}.items() if v})
    values = {"page": page, "q": q, "verdict": word, "words": _WORDS, "older": older, "is_first": not after}
    is_asked = bool(q or word or after)
    assessed = [] if is_asked else project_assessments.list_assessments(context, caller.project_id)
    orders = [] if is_asked else evaluation_orders.list_orders(context, caller)
    names = HumanNames(context, caller.project_id)
    names.read(text for one in page.evaluations for text in (one.headline, *one.systems))
    names.read(text for found in assessed for text in (found.candidate, found.headline))
    names.read(one.order.candidate for one in orders)
    values["page"] = shown = names.within(page)
    language = page_language(request, "evaluation_orders/list.html")
    values["systems"] = {one.evaluation_id: listed_in_language(one.systems, language) for one in shown.evaluations}
    runs = {*(one.run_id for one in page.evaluations), *(one.run_id for one in assessed)}
    values |= {
        "assessments": names.within(assessed),
        "orders": names.within(orders),
        "run_names": context.run_labels.names([run_id for run_id in runs if run_id]),
        "rows_names": rows_names(context, caller.project_id, [one.held_out_file for one in page.evaluations]),
        "tone_of": tone_of,
    }
    return render(request, "evaluation_orders/list.html", values)


@router.get("/{evaluation_id}")
def show_evaluation(
    request: Request,
    context: HomeContext,
    caller: Reader,
    evaluation_id: str,
    asked: SamplesAsked,
    questions: QuestionsAsked,
    page: PageNumber = 1,
    details: Annotated[str, Query(max_length=10)] = "",
) -> Response:
    """One evaluation; for HTMX its samples alone. details: not empty to open the statistics."""
    stored = read_evaluation(context, caller.project_id, evaluation_id)
    template = "evaluation_orders/samples.html" if is_fragment_request(request) else "evaluation_orders/show.html"
    evaluation = in_language(stored, page_language(request, template))
    who = roles(evaluation) or Roles("", None)
    kept = {name: value for name, value in questions.items() if value}
    address = f"/evaluations/{evaluation.evaluation_id}"
    samples = samples_shown(evaluation, who, asked, page, address, kept=kept, decimal_mark=decimal_mark_of(request))
    status = 422 if samples["error"] is not None else 200
    names = HumanNames(context, caller.project_id).read(system.name for system in evaluation.systems)
    if is_fragment_request(request):
        return render(request, template, names.within(samples), status=status)
    lines, further = ((), ()) if evaluation.verdict is None else judged.main_details(evaluation.verdict)
    view = verdict_view(stored)
    run_id = evaluation.run_id
    values = {
        "view": view,
        "rows_name": _rows_name(context, caller, evaluation),
        "run_name": "" if run_id is None else context.run_labels.names([run_id])[run_id],
        "steps": next_steps(context, caller, stored, None if view is None else view.recommendation),
        "worth": None if evaluation.verdict is None else _worth(request, context, caller, stored, questions),
        "shows_details": bool(details),
        "details": lines,
        "further": further,
        "tone": tone_of(None if evaluation.verdict is None else evaluation.verdict.word),
        "metrics": judged.metric_rows(evaluation),
        "differences": judged.difference_rows(evaluation.comparisons, judged.units(evaluation), who),
        "prompts": prompt_rows(evaluation),
        "charts": judged.charts(evaluation, who),
        "confusions": judged.confusion_tables(evaluation, who),
        "confidence": evaluation.label_confidence,
        "confidence_charts": judged.label_confidence_charts(evaluation, who),
        "shade": shade,
        "forgetting": None if evaluation.forgetting is None else forgetting_rows(evaluation.forgetting),
    }
    return render(request, template, names.within(values | samples), status=status)


def _worth(
    request: Request, context: Context, caller: Caller, evaluation: Evaluation, questions: dict[str, str]
) -> WorthPart:
    """The form of the three questions and its answer, in the language of the page and the currency of the project."""
    currency = project_currency(context, caller.project_id)
    return worth_part(context, evaluation, questions, decimal_mark=decimal_mark_of(request), currency=currency)


@router.get("/{evaluation_id}/worth")
def worth(
    request: Request, context: HomeContext, caller: Reader, evaluation_id: str, questions: QuestionsAsked
) -> Response:
    """The answer to the three questions, for HTMX; for others the whole page with it."""
    evaluation = read_evaluation(context, caller.project_id, evaluation_id)
    part = _worth(request, context, caller, evaluation, questions)
    address = f"/evaluations/{evaluation.evaluation_id}?{urlencode(part.query)}"
    if not is_fragment_request(request):
        return redirect(request, f"{address}#worth")
    answer = render(
        request, "roi/worth_part.html", {"worth": part}, status=200 if part.error is None else status_of(part.error)
    )
    # The address of the whole page, so that a reload shows the same answer.
    answer.headers["HX-Push-Url"] = address
    return answer


@router.get("/{evaluation_id}/alternative")
def alternative(request: Request, context: HomeContext, caller: Reader, evaluation_id: str) -> Response:
    """The prompt or the method that is recommended in place of the tuned model."""
    evaluation = read_evaluation(context, caller.project_id, evaluation_id)
    values: dict[str, Any] = {"evaluation": evaluation, "found": alternative_of(evaluation), "current": "/evaluations"}
    values |= {"rows_name": _rows_name(context, caller, evaluation)}
    return render(request, "evaluation_orders/alternative.html", values)


def _rows_name(context: Context, caller: Caller, evaluation: Evaluation) -> str:
    return rows_names(context, caller.project_id, [evaluation.held_out_file])[evaluation.held_out_file]
