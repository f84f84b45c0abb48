"""/datasets/{id}/map: the rows of a version as points, near where their prompts use the same words."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from luthier.core.errors import NotFoundError
from luthier.service import dataset_maps, dataset_versions
from luthier.service.annotation_queue import named_lines
from luthier.web.prompt_picture import NO_GROUP, picture
from luthier.web.render import is_fragment_request, render
from luthier.web.visitor import HomeContext, Reader

router = APIRouter(prefix="/datasets/{dataset_id}/map")

_PAGE: Final = 25
_MOST_NAMED: Final = 500
"""Rows that one address names."""


@router.get("")
def look(
    request: Request,
    context: HomeContext,
    caller: Reader,
    dataset_id: str,
    version: int | None = None,
    draw: bool = False,
    group: int | None = None,
    page: int = 1,
) -> Response:
    """The map, once it is drawn; before that the page that asks for it. group: whose rows are listed below."""
    dataset, versions = dataset_versions.show_dataset(context, caller, dataset_id)
    found = dataset_versions.get_version(context, caller, dataset_id, version)
    ask = dataset_maps.draw_map if draw or group is not None else dataset_maps.known_map
    drawn = ask(context, caller, found)
    values: dict[str, Any] = {"dataset": dataset, "versions": versions, "version": found, "drawn": drawn}
    if drawn is not None:
        shown = picture(drawn)
        values |= {"picture": shown} | _listed(drawn, shown.groups, group, page)
    if not is_fragment_request(request):
        return render(request, "dataset_work/map.html", values)
    piece = "map_drawn.html" if group is None else "map_group.html"
    return render(request, f"dataset_work/{piece}", values)


@router.get("/points")
def points(context: HomeContext, caller: Reader, dataset_id: str, version: int) -> Response:
    """The points with what they say, for the script that shows them on hover."""
    found = dataset_versions.get_version(context, caller, dataset_id, version)
    drawn = dataset_maps.known_map(context, caller, found)
    if drawn is None:
        raise NotFoundError("this map was not drawn yet", expected="a map that was drawn", do="open its page first")
    return JSONResponse({"scale": picture(drawn).scale, "points": drawn["points"]})


def _listed(drawn: dict[str, Any], groups: Any, number: int | None, page: int) -> dict[str, Any]:
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
    lines = tuple(row["line"] for row in rows[:_MOST_NAMED])
    return {
        "group": group,
        "rows": rows[(page - 1) * _PAGE : page * _PAGE],
        "page": page,
        "pages": pages,
        "lines": named_lines(lines),
        "most_named": _MOST_NAMED,
        "is_rest": number == NO_GROUP,
    }
