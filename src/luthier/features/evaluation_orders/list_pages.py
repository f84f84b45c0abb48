"""/evaluations: the verdicts of a project, and each with its figures and every sample behind them."""

from __future__ import annotations

from typing import Annotated, Final, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.core.evaluation import VerdictWord
from luthier.features.assessments import service as project_assessments
from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.evaluations import judged_view as judged
from luthier.features.evaluations.samples_view import PageNumber, SamplesAsked, samples_shown
from luthier.features.runs.evaluations import list_evaluations, read_evaluation
from luthier.ml.charts.judged_rows import forgetting_rows, tone_of
from luthier.ml.evaluation.roles import Roles, roles
from luthier.platform.ui.navigation import Page
from luthier.platform.ui.render import is_fragment_request, render
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter(prefix="/evaluations")
PAGE = Page("Evaluations", "/evaluations", "read", order=50, key="e")

_LIST: Final = 50
_WORDS: Final = (*get_args(VerdictWord), "none")
_Text = Annotated[str, Query(max_length=500)]


@router.get("")
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
    values |= {"assessments": [], "orders": []}
    if not (q or word or after):
        values["assessments"] = project_assessments.list_assessments(context, caller.project_id)
        values["orders"] = evaluation_orders.list_orders(context, caller)
    return render(request, "evaluation_orders/list.html", values | {"tone_of": tone_of})


@router.get("/{evaluation_id}")
def show(
    request: Request,
    context: HomeContext,
    caller: Reader,
    evaluation_id: str,
    asked: SamplesAsked,
    page: PageNumber = 1,
) -> Response:
    """One evaluation; for HTMX its samples alone."""
    evaluation = read_evaluation(context, caller.project_id, evaluation_id)
    who = roles(evaluation) or Roles("", None)
    samples = samples_shown(evaluation, who, asked, page, f"/evaluations/{evaluation.evaluation_id}")
    status = 422 if samples["error"] is not None else 200
    if is_fragment_request(request):
        return render(request, "evaluation_orders/samples.html", samples, status=status)
    details, further = ((), ()) if evaluation.verdict is None else judged.main_details(evaluation.verdict)
    values = {
        "details": details,
        "further": further,
        "tone": tone_of(None if evaluation.verdict is None else evaluation.verdict.word),
        "metrics": judged.metric_rows(evaluation),
        "differences": judged.difference_rows(evaluation.comparisons, judged.units(evaluation), who),
        "charts": judged.charts(evaluation, who),
        "forgetting": None if evaluation.forgetting is None else forgetting_rows(evaluation.forgetting),
    }
    return render(request, "evaluation_orders/show.html", values | samples, status=status)
