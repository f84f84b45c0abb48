"""/datasets/{id}/questions: have a model write questions and answers from passages; who, how many, for how much."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError
from luthier.core.text.written_numbers import typed_number, typed_whole
from luthier.features.datasets import questions
from luthier.features.datasets.pages.datasets import Number, head, waiting_page
from luthier.features.datasets.questions import MAX_PAIRS, Estimate, Teacher
from luthier.features.datasets.store import DatasetVersion
from luthier.platform.home.context import Context
from luthier.platform.jobs.twins import is_joined
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Trainer

router = APIRouter(prefix="/datasets/{dataset_id}/questions")

_Text = Annotated[str, Form(max_length=300)]
_Word = Annotated[str, Query(max_length=300)]


@router.get("")
def show(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Number = None,
    teacher: _Word = "",
    pairs: _Word = "",
    passages: _Word = "",
    budget: _Word = "",
) -> Response:
    """The form with the estimate of what is chosen in it."""
    given = {"teacher": teacher, "pairs": pairs, "passages": passages, "budget": budget}
    return _page(request, context, caller, dataset_id, version, given)


@router.post("")
def start(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form(ge=1)],
    teacher: _Text = "",
    pairs: _Text = "1",
    passages: _Text = "",
    budget: _Text = "",
) -> Response:
    """Queue it, and lead to its page."""
    given = {"teacher": teacher, "pairs": pairs, "passages": passages, "budget": budget}
    began, values = context.access.now(), head(context, caller, dataset_id, version, "/questions")
    mark = decimal_mark_of(request)
    try:
        job = questions.start(
            context,
            caller,
            values["version"],
            teacher,
            pairs_per_passage=_number("questions a passage", pairs, mark) or 1,
            max_passages=_number("passages", passages, mark),
            budget_usd=_amount(budget, mark),
            joins=True,
        )
    except LuthierError as error:
        return _page(request, context, caller, dataset_id, version, given, error)
    address = f"/datasets/jobs/{job.job_id}"
    if not is_joined(job, began):
        return redirect(request, address)
    return redirect(
        request, address, "The same questions were ordered before and are not ready yet: this is their job."
    )


def form_values(
    context: Context, caller: Caller, version: DatasetVersion, given: dict[str, str] | None = None, mark: str = "."
) -> dict[str, Any]:
    """What the form shows: the models, what is chosen, and what it will take.

    Args:
        context: of the home.
        caller: whose page it is.
        version: with the passages.
        given: what was typed, by field; None for a new form.
        mark: before decimals, in the language of the page.

    Raises:
        NotFoundError: the file of the version is gone.
        DataError: the file cannot be read.
        WorkError: the machine could not index it.
    """
    given = dict.fromkeys(("teacher", "pairs", "passages", "budget"), "") | (given or {})
    known = questions.teachers(context, caller.project_id)
    chosen = next((one for one in known if one.value == given["teacher"]), known[0] if known else None)
    pairs, passages = _read(given, mark)
    return {
        "version": version,
        "teachers": known,
        "chosen": chosen,
        "given": given | {"pairs": given["pairs"] or "1"},
        "estimates": _estimates(context, caller, version, known, pairs, passages),
        "max_pairs": MAX_PAIRS,
    }


def _estimates(
    context: Context,
    caller: Caller,
    version: DatasetVersion,
    known: list[Teacher],
    pairs: int,
    passages: int | None,
) -> list[tuple[Teacher, Estimate]]:
    """An estimate for each price: models of this machine share one."""
    by_price: dict[Any, tuple[Teacher, Estimate]] = {}
    for one in known:
        if one.prices not in by_price:
            found = questions.estimate(context, caller, version, one, pairs_per_passage=pairs, max_passages=passages)
            by_price[one.prices] = one, found
    return list(by_price.values())


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    dataset_id: str,
    number: int | None,
    given: dict[str, str],
    error: LuthierError | None = None,
) -> Response:
    values = head(context, caller, dataset_id, number, "/questions")
    values["form"] = None
    try:
        questions.check_passages(context, caller, values["version"])
        if (waiting := waiting_page(request, context, caller, values, needs_index=False)) is not None:
            return waiting
        values["form"] = form_values(context, caller, values["version"], given, decimal_mark_of(request))
    except LuthierError as problem:
        error = error or problem
    values["error"] = error
    return render(request, "datasets/questions.html", values, status=200 if error is None else status_of(error))


def _read(given: dict[str, str], mark: str) -> tuple[int, int | None]:
    """The numbers of the form for an estimate; what cannot be read counts as not given, and is refused at the start."""
    try:
        return _number("questions a passage", given["pairs"], mark) or 1, _number("passages", given["passages"], mark)
    except RequestError:
        return 1, None


def _number(name: str, text: str, mark: str) -> int | None:
    if not text.strip():
        return None
    try:
        found = typed_whole(text, mark)
    except ValueError:
        found = 0
    if not 0 < found < 10**9:
        raise RequestError(
            f"{text[:40]!r} {name}", expected="a whole number from 1 on", do="correct it, or leave it empty"
        )
    return found


def _amount(text: str, mark: str) -> float | None:
    text = text.strip()
    if not text:
        return None
    try:
        return typed_number(text, mark)
    except ValueError:
        raise RequestError(
            f"{text[:40]!r} as the budget", expected="US dollars, such as 2.50", do="correct it, or leave it empty"
        ) from None
