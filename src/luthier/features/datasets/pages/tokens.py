"""/datasets/{id}/tokens: a version as a base model gets it: its tokens, which are learned, how long rows are."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.features.datasets.pages.datasets import Number, head
from luthier.features.datasets.version_analyses import TEMPLATES, begin_tokens, tokens_state
from luthier.ml.charts.spec import Axis, Mark, Plot, Series
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import local_base_models
from luthier.platform.processes.result_cache import CachedResult
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter(prefix="/datasets/{dataset_id}/tokens")

_Word = Annotated[str, Query(max_length=300)]
_FormWord = Annotated[str, Form(max_length=300)]


@router.get("")
def show(
    request: Request,
    context: HomeContext,
    caller: Reader,
    dataset_id: str,
    version: Number = None,
    model: _Word = "",
    template: _Word = "auto",
) -> Response:
    """The tokens, where they were found out with this model; else the form that begins it."""
    return _page(request, context, caller, dataset_id, version, model, template)


@router.post("")
def start_computation(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form(ge=1)],
    model: _FormWord = "",
    template: _FormWord = "auto",
) -> Response:
    """Begin, unless it is known already, and lead to where it will be seen."""
    found = head(context, caller, dataset_id, version, "/tokens")["version"]
    try:
        if tokens_state(context, found, model, template).state != "answered":
            begin_tokens(context, caller, found, model, template)
    except LuthierError as error:
        return _page(request, context, caller, dataset_id, version, model, template, error)
    query = urlencode({"version": version, "model": model, "template": template})
    return redirect(request, f"/datasets/{dataset_id}/tokens?{query}")


def length_chart(bins: list[list[int]], context_tokens: int) -> Plot:
    """How many rows are how long, as steps; the context of the model as a mark.

    Args:
        bins: Of each bin its lowest length, its highest length and its number of rows.
        context_tokens: Of the model.
    """
    points = [(float(low), float(count)) for low, _, count in bins]
    if bins:
        # Closes the last step: a step line holds each value up to the next point.
        points.append((float(bins[-1][1] + 1), 0.0))
    return Plot(
        "lengths",
        "How long the rows are",
        Axis("length", "tokens"),
        Axis("rows", low=0.0),
        [Series("rows", points, shape="steps")],
        marks=[Mark(float(context_tokens), "context")],
        caption=f"The context of the model is {context_tokens:,} tokens.",
    )


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    dataset_id: str,
    version: int | None,
    model: str,
    template: str,
    error: LuthierError | None = None,
) -> Response:
    values: dict[str, Any] = head(context, caller, dataset_id, version, "/tokens")
    state = (
        tokens_state(context, values["version"], model, template)
        if model and error is None
        else CachedResult("unasked")
    )
    values |= {
        "models": local_base_models(context, caller.project_id),
        "model": model,
        "template": template,
        "templates": TEMPLATES,
        "state": state,
        "error": error,
    }
    if state.answer is not None:
        values["chart_spec"] = length_chart(state.answer["bins"], state.answer["context_tokens"])
    return render(request, "datasets/tokens.html", values, status=200 if error is None else status_of(error))
