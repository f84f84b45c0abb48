"""/models: what was tuned, what answers by which name, the base models, and where all of it comes from."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.features.deployments import service as deployments
from luthier.features.lineage.chart import lineage_svg
from luthier.features.lineage.service import project_lineage
from luthier.features.model_cards import service as project_models
from luthier.platform.ui.navigation import Page
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter()
PAGE = Page("Models", "/models", "read", order=70, key="m")

_MAX: Final = 20
Tab = Literal["tuned", "deployments", "base", "lineage"]


@router.get("/models")
def models(
    request: Request,
    context: HomeContext,
    caller: Reader,
    show: Tab = "tuned",
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The models of the project, and those of the machine."""
    values: dict[str, Any] = {"show": show}
    if show == "tuned":
        views, has_more = project_models.list_tuned(context, caller, limit=_MAX, after=after)
        values |= {"views": views, "has_more": has_more, "is_first": after is None}
    elif show == "deployments":
        values |= {"deployments": deployments.list_deployments(context, caller)}
    elif show == "base":
        values |= {"bases": project_models.list_bases(context)}
    else:
        lineage = project_lineage(context, caller)
        values |= {"lineage": lineage, "drawing": lineage_svg(lineage) if lineage.nodes else None}
    return render(request, "model_browser/list.html", values)
