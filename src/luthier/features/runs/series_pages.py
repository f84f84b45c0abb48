"""/runs/RUN_ID/series: what is new of a run for who watches it, as JSON."""

from __future__ import annotations

import gzip
import json
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.features.runs.curves import best_marks, layout_of, rounded
from luthier.features.runs.series import RunSeries
from luthier.features.runs.state import last_step, standing
from luthier.features.runs.view import num_done, words
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter()

_PACKED_FROM_BYTES: Final = 1_000


@router.get("/runs/{run_id}/series")
def series(
    request: Request,
    context: HomeContext,
    caller: Reader,
    run_id: str,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
) -> Response:
    """The points since the position `after` of an earlier answer, and what else has changed; 0: all, thinned.

    is_whole: the points replace all earlier ones. from_step: points of later steps are to be dropped first. is_more:
    something came besides steps. layout: of all series, where the answer is whole.
    """
    found = standing(context, caller, run_id)
    kept: RunSeries = request.app.state.run_series
    news = kept.news(run_id, after)
    points: dict[str, dict[str, list[Any]]] = {}
    for (chart, name), its_points in news.curves.points.items():
        points.setdefault(chart, {})[name] = rounded(its_points)
    document = {
        "position": news.position,
        "is_whole": news.is_whole,
        "from_step": news.curves.from_step,
        "is_more": news.curves.is_more,
        "points": points,
        "layout": layout_of(news.curves),
        "marks": [{"x": mark.x, "name": mark.name} for mark in best_marks(news.curves)],
        "words": words(context, found),
        "num_done": num_done(found, last_step(context, run_id)),
        "standing": f"{found.status} {found.phase} {found.num_ahead}",
        "has_begun": found.record is not None,
        "is_over": found.is_over,
    }
    return _json(request, document)


def _json(request: Request, document: dict[str, Any]) -> Response:
    content = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    headers = {"Cache-Control": "no-store", "Vary": "accept-encoding"}
    if len(content) >= _PACKED_FROM_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        content = gzip.compress(content, compresslevel=5, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Response(content, media_type="application/json", headers=headers)
