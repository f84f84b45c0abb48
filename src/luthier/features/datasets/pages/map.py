"""/datasets/{id}/map: the rows of a version as points, close together where their prompts use the same words.

The drawing has one path a group, so that three thousand points are a few kilobytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from luthier.core.errors import NotFoundError
from luthier.features.datasets import version_analyses as dataset_maps
from luthier.features.datasets.annotations import MAX_ROWS_LINKED, named_lines
from luthier.features.datasets.pages.datasets import Number, head
from luthier.platform.ui.render import is_fragment_request, render
from luthier.platform.ui.visitor import HomeContext, Reader

WIDTH: Final = 960
HEIGHT: Final = 560
_EDGE: Final = 28
_LABEL_HEIGHT: Final = 22
_CHARACTER_WIDTH: Final = 7.6
NO_GROUP: Final = -1


@dataclass(frozen=True, slots=True)
class Group:
    """A group of the map. Places are pixels of the drawing.

    Attributes:
        number: -1 for the points of no group.
        name: Its most typical words.
        num_points: How many points.
        colour: A class of the style sheet.
        dots: An SVG path of its dots.
        x: Where its name is written.
        y: Where its name is written.
        is_named_there: Whether there was room for the name.
    """

    number: int
    name: str
    num_points: int
    colour: str
    dots: str
    x: float = 0.0
    y: float = 0.0
    is_named_there: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing of the map.

    Attributes:
        groups: The largest first, the points of no group last.
        scale: (left, factor, top, factor) from a point of the map to pixels.
        width: Pixels.
        height: Pixels.
    """

    groups: Sequence[Group]
    scale: tuple[float, float, float, float]
    width: int = WIDTH
    height: int = HEIGHT


def picture(drawn: Mapping[str, Any]) -> Picture:
    """Lay out a map of `dataset_maps`; the largest group comes first, the points without a group last."""
    points = drawn["points"]
    scale = _scale([point["x"] for point in points], [point["y"] for point in points])
    left, across, top, down = scale
    dots: dict[int, list[str]] = defaultdict(list)
    for point in points:
        x, y = left + point["x"] * across, top + point["y"] * down
        # A move and a zero-length line: with round line caps the stroke draws a dot.
        dots[point["group"]].append(f"M{x:.1f} {y:.1f}h0")
    numbers = sorted((n for n in dots if n != NO_GROUP), key=lambda n: (-len(dots[n]), n))
    names = _names(drawn["groups"], numbers)
    taken: list[tuple[float, float, float]] = []
    groups = []
    for place, number in enumerate(numbers):
        region, name = drawn["groups"][number], names[number]
        half = len(name) * _CHARACTER_WIDTH / 2 + 6
        # Kept inside the drawing by half the width of the label.
        x = min(max(left + region["x"] * across, half), WIDTH - half)
        y = min(max(top + region["y"] * down, _LABEL_HEIGHT), HEIGHT - 8)
        # Greedy, largest group first: a label that would overlap an earlier one is only in the list.
        has_room = all(abs(x - a) > half + b or abs(y - c) > _LABEL_HEIGHT for a, b, c in taken)
        if has_room:
            taken.append((x, half, y))
        groups.append(
            Group(number, name, len(dots[number]), f"group-{place % 6}", "".join(dots[number]), x, y, has_room)
        )
    if NO_GROUP in dots:
        rest = "in no group" if groups else "rows"
        groups.append(Group(NO_GROUP, rest, len(dots[NO_GROUP]), "group-none", "".join(dots[NO_GROUP])))
    return Picture(groups, scale)


def _names(regions: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> dict[int, str]:
    """Each group by its words; one that says the same as a larger one gets a number behind them."""
    named: dict[int, str] = {}
    times: dict[str, int] = defaultdict(int)
    for number in numbers:
        words = " · ".join(word[:24] for word in regions[number]["words"])
        times[words] += 1
        named[number] = words if times[words] == 1 else f"{words} ({times[words]})"
    return named


def _scale(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float, float]:
    # `or 1.0`: all points on one line would divide by zero.
    low_x, width = min(xs, default=0.0), (max(xs, default=0.0) - min(xs, default=0.0)) or 1.0
    low_y, height = min(ys, default=0.0), (max(ys, default=0.0) - min(ys, default=0.0)) or 1.0
    across, down = (WIDTH - 2 * _EDGE) / width, (HEIGHT - 2 * _EDGE) / height
    # SVG's y axis points down, so the factor of y is negative.
    return _EDGE - low_x * across, across, HEIGHT - _EDGE + low_y * down, -down


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
