"""/datasets/{id}/columns: which column is the question and which the answer, chosen over the first rows."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.features.datasets import columns as column_choices
from luthier.features.datasets.columns import ColumnChoice, Use
from luthier.features.datasets.pages.datasets import Number, head, waiting_page
from luthier.features.datasets.rows import look_of
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter(prefix="/datasets/{dataset_id}/columns")

_Name = Annotated[str, Form(max_length=1000)]


@router.get("")
def show(request: Request, context: HomeContext, caller: Reader, dataset_id: str, version: Number = None) -> Response:
    """The first rows, and what their columns are used for."""
    return _page(request, context, caller, dataset_id, version)


@router.post("")
def choose(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form(ge=1)],
    use: Annotated[Use, Form()] = "question",
    first: _Name = "",
    second: _Name = "",
) -> Response:
    """Keep the choice with the version."""
    found = head(context, caller, dataset_id, version, "/columns")["version"]
    choice = ColumnChoice(use, first, "" if use == "text" else second)
    try:
        column_choices.choose(context, caller, found, choice)
    except LuthierError as error:
        return _page(request, context, caller, dataset_id, version, choice, error)
    return redirect(request, f"/datasets/{dataset_id}?version={version}", "The columns are kept with this version.")


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    dataset_id: str,
    number: int | None,
    choice: ColumnChoice | None = None,
    error: LuthierError | None = None,
) -> Response:
    values = head(context, caller, dataset_id, number, "/columns")
    values |= {"table": None, "choice": choice, "look": None}
    try:
        if (waiting := waiting_page(request, context, caller, values, needs_index=False)) is not None:
            return waiting
        table = column_choices.table_of(context, caller, values["version"])
        values |= {"table": table, "choice": choice or table.proposed}
        values["look"] = look_of(context, caller, values["version"]).answer
    except LuthierError as problem:
        error = error or problem
    values["error"] = error
    return render(request, "datasets/columns.html", values, status=200 if error is None else status_of(error))
