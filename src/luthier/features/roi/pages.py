"""/worth: is fine-tuning worth it? Three questions, and the answer with what it hangs on."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.core.errors import LuthierError, RequestError
from luthier.features.roi.service import compute_roi
from luthier.features.runs.views import list_evaluations, read_evaluation
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter(prefix="/worth")

_MAX_EVALUATIONS: Final = 100
_QUESTIONS: Final = {
    "answers_per_week": "answers a week",
    "minutes_each": "minutes for each",
    "cost_of_an_error": "cost of a wrong answer",
}
_THOUSANDS: Final = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
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
        "evaluation": evaluation,
    }
    judged = list_evaluations(context, caller.project_id, limit=_MAX_EVALUATIONS).evaluations
    values: dict[str, Any] = {"given": given, "judged": judged, "error": None, "result": None}
    if not any(given[name] for name in (*_QUESTIONS, "accuracy_today", "rate_per_hour", "currency")):
        return render(request, "roi/worth.html", values)
    try:
        values |= _answer(context, caller.project_id, given)
    except LuthierError as error:
        return render(request, "roi/worth.html", values | {"error": error}, status=status_of(error))
    return render(request, "roi/worth.html", values)


def _answer(context: Context, project_id: str, given: dict[str, str]) -> dict[str, Any]:
    """What the page shows below the form.

    Raises:
        RequestError: a figure is missing or none, or the evaluation cannot be used.
        NotFoundError: the project has no such evaluation.
    """
    from luthier.ml.planning.roi import answer
    from luthier.ml.planning.roi.questions import Questions, read_accuracy
    from luthier.ml.planning.roi.report.page import roi_charts

    numbers = {name: _number(words, given[name]) for name, words in _QUESTIONS.items()}
    today = given["accuracy_today"]
    accuracy, counted = read_accuracy(_share(today), "right answers today:") if today else (None, None)
    rate = _number("an hour of people", given["rate_per_hour"]) if given["rate_per_hour"] else None
    asked = Questions(
        **numbers,
        accuracy_today=accuracy,
        counted_today=counted,
        rate_per_hour=rate,
        currency=given["currency"].upper() or "USD",
    )
    if given["evaluation"]:
        read_evaluation(context, project_id, given["evaluation"])  # one of another project is not found
    result = compute_roi(context, asked, verdict=given["evaluation"] or None).result
    return {
        "result": result,
        "badge": answer.BADGES[result.answer],
        "tone": answer.TONES[result.answer],
        "key_figures": answer.key_figures(result),
        "ways": answer.way_rows(result),
        "charts": roi_charts(result),
        "against": result.break_evens[0].against,
    }


def _number(words: str, text: str) -> float:
    # 1,000 and 1,000.50 have thousands; any other comma, as in 2,5, is a decimal one.
    plain = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text.replace(",", ".")
    try:
        return float(plain)
    except ValueError as error:
        raise RequestError(
            f"{words}: {text!r}" if text else f"no {words}",
            expected="a number from 0 on",
            do="write a figure such as 400 or 2.5",
        ) from error


def _share(text: str) -> str:
    """A percentage as a share, and a decimal comma as a point; a count unchanged."""
    try:
        return str(float(text.removesuffix("%")) / 100) if text.endswith("%") else text.replace(",", ".")
    except ValueError:
        return text
