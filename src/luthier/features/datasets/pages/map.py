"""/datasets/{id}/map: the rows of a version as points, near where their prompts use the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from luthier.core.errors import NotFoundError
from luthier.features.datasets import maps as dataset_maps
from luthier.features.datasets.annotations import MAX_ROWS_LINKED, named_lines
from luthier.features.datasets.pages.datasets import Number
from luthier.features.datasets.pages.head import head
from luthier.features.datasets.pages.map_drawing import NO_GROUP, Group, picture
from luthier.platform.ui.render import is_fragment_request, render
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter(prefix="/datasets/{dataset_id}/map")

_PAGE: Final = 25


@router.get("")
def look(
    request: Request,
    context: HomeContext,
    caller: Reader,
    dataset_id: str,
    version: Number = None,
    group: int | None = None,
    page: int = 1,
    again: bool = False,
) -> Response:
    """The map, once it is drawn; the first look begins that. group: whose rows are listed below."""
    values = head(context, caller, dataset_id, version, "/map")
    values["state"] = state = dataset_maps.map_of(context, caller, values["version"], again=again)
    # Without an answer the whole page is sent: it polls until the map is drawn.
    is_piece = is_fragment_request(request) and group is not None and state.answer is not None
    if state.answer is not None:
        shown = picture(state.answer)
        values |= {"drawn": state.answer, "picture": shown} | _listed(state.answer, shown.groups, group, page)
    return render(request, f"datasets/{'map_group' if is_piece else 'map'}.html", values)


@router.get("/points")
def points(context: HomeContext, caller: Reader, dataset_id: str, version: Number = None) -> Response:
    """The points with what they say, for the script that shows them on hover."""
    drawn = dataset_maps.map_of(context, caller, head(context, caller, dataset_id, version, "/map")["version"]).answer
    if drawn is None:
        raise NotFoundError("this map is not drawn yet", expected="a map that was drawn", do="open its page first")
    return JSONResponse({"scale": picture(drawn).scale, "points": drawn["points"]})


def _listed(drawn: dict[str, Any], groups: Sequence[Group], number: int | None, page: int) -> dict[str, Any]:
    if number is None:
        return {"group": None}
    group = next((one for one in groups if one.number == number), None)
    if group is None:
        raise NotFoundError(
            f"no group {number} of this map", expected="a group of the map", do="choose one of the list"
        )
    rows = dataset_maps.rows_of_group(drawn, group.number)
    pages = max(1, -(-len(rows) // _PAGE))
    page = min(max(1, page), pages)
    return {
        "group": group,
        "rows": rows[(page - 1) * _PAGE : page * _PAGE],
        "page": page,
        "pages": pages,
        "lines": named_lines(tuple(row["line"] for row in rows[:MAX_ROWS_LINKED])),
        "most_named": MAX_ROWS_LINKED,
        "is_rest": number == NO_GROUP,
    }
