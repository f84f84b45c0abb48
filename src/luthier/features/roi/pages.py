"""/worth: is fine-tuning worth it? Three questions, and the answer with what it hangs on."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.core.errors import LuthierError
from luthier.features.planning.currency import project_currency
from luthier.features.roi.service import compute_roi
from luthier.features.roi.three_questions import QUESTIONS, in_currency, questions_of, understood, why_assumed
from luthier.features.runs.views import list_evaluations, read_evaluation, rows_names
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter(prefix="/worth")

_MAX_EVALUATIONS: Final = 100
_Text = Annotated[str, Query(max_length=40)]


@router.get("")
def worth(
    request: Request,
    context: HomeContext,
    caller: Reader,
    answers_per_week: _Text = "",
    minutes_each: _Text = "",
    cost_of_an_error: _Text = "",
    accuracy_today: _Text = "",
    rate_per_hour: _Text = "",
    currency: Annotated[str, Query(max_length=3)] = "",
    currency_per_usd: _Text = "",
    evaluation: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """The form; once its three questions are answered, the answer below it."""
    given = {
        "answers_per_week": answers_per_week.strip(),
        "minutes_each": minutes_each.strip(),
        "cost_of_an_error": cost_of_an_error.strip(),
        "accuracy_today": accuracy_today.strip(),
        "rate_per_hour": rate_per_hour.strip(),
        "currency": currency.strip(),
        "currency_per_usd": currency_per_usd.strip(),
        "evaluation": evaluation,
    }
    mark, of_project = decimal_mark_of(request), project_currency(context, caller.project_id)
    is_blank = not any(
        given[name] for name in (*QUESTIONS, "accuracy_today", "rate_per_hour", "currency", "currency_per_usd")
    )
    given = in_currency(of_project, given, mark)
    judged = list_evaluations(context, caller.project_id, limit=_MAX_EVALUATIONS).evaluations
    values: dict[str, Any] = {
        "given": given,
        "judged": judged,
        "error": None,
        "result": None,
        "assumed": "",
        "currency": of_project,
    }
    values |= {
        "run_names": context.run_labels.names([one.run_id for one in judged if one.run_id]),
        "rows_names": rows_names(context, caller.project_id, [one.held_out_file for one in judged]),
    }
    if is_blank:
        return render(request, "roi/worth.html", values)
    try:
        values |= _answer(context, caller.project_id, given, mark)
    except LuthierError as error:
        return render(request, "roi/worth.html", values | {"error": error}, status=status_of(error))
    return render(request, "roi/worth.html", values)


def _answer(context: Context, project_id: str, given: dict[str, str], mark: str) -> dict[str, Any]:
    """What the page shows below the form.

    Raises:
        RequestError: a figure is missing or none, or the evaluation cannot be used.
        NotFoundError: the project has no such evaluation.
    """
    from luthier.ml.planning.roi import answer
    from luthier.ml.planning.roi.report.page import roi_specs

    asked = questions_of(given, decimal_mark=mark)
    verdict, assumed = None, ""
    if given["evaluation"]:
        # One of another project is not found.
        evaluation = read_evaluation(context, project_id, given["evaluation"])
        assumed = why_assumed(evaluation)
        verdict = None if assumed else evaluation.evaluation_id
    result = compute_roi(context, asked, verdict=verdict).result
    return {
        "assumed": assumed,
        "understood": understood(asked),
        "result": result,
        "badge": answer.BADGES[result.answer],
        "tone": answer.TONES[result.answer],
        "key_figures": answer.key_figures(result),
        "ways": answer.way_rows(result),
        "charts": roi_specs(result),
        "against": result.break_evens[0].against,
    }
