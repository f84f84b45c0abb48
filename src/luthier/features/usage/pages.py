"""/settings/usage: usage of models in the last days, as a chart and a table."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.features.usage.service import ModelUse, UseOfDays, usage_by_model
from luthier.ml.charts.spec import Axis, Bar, Bars, OwnName, Plot, Role, Series
from luthier.platform.ui.render import Advised, Page
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter()
PAGE = Page("Usage", "/settings/usage", "read", order=70, group="settings", advised=(Advised(commands=("usage",)),))

_SPANS: Final = (7, 30, 90)
_ROLES: Final[tuple[Role, ...]] = ("tuned", "other-1", "other-2", "other-3")
_MAX_BARS: Final = 12


@router.get("/settings/usage")
def usage(
    request: Request, context: HomeContext, caller: Reader, days: Annotated[Literal["7", "30", "90"], Query()] = "30"
) -> Response:
    """By model, the one asked most often first."""
    used = usage_by_model(context, caller.project_id, num_days=int(days))
    charts = [_by_day(used), _tokens(used.models[:_MAX_BARS])] if used.models else []
    values = {"used": used, "charts": charts, "spans": _SPANS, "num_days": int(days)}
    is_priced = any(one.cost_usd is not None for one in used.models)
    return show(request, "usage", values | {"is_priced": is_priced})


def _by_day(used: UseOfDays) -> Plot:
    """Requests of each day: a line for each of the first models, and one for all others together."""
    first = used.models[: len(_ROLES)]
    # Today is day 0.
    backwards = range(-len(used.days) + 1, 1)
    series = [
        Series(
            OwnName(one.model),
            [(float(x), float(y)) for x, y in zip(backwards, one.requests_by_day, strict=True)],
            role,
        )
        for one, role in zip(first, _ROLES, strict=False)
    ]
    # Colours are few: beyond them lines could not be distinguished.
    if others := used.models[len(_ROLES) :]:
        sums = [float(sum(counts)) for counts in zip(*(one.requests_by_day for one in others), strict=True)]
        name = f"{len(others)} other{'' if len(others) == 1 else 's'}"
        series.append(Series(name, [(float(x), y) for x, y in zip(backwards, sums, strict=True)], "quiet"))
    return Plot(
        key="requests",
        title="Requests a day, by model",
        x=Axis("day, counted from today", "UTC"),
        y=Axis("requests", low=0.0),
        series=series,
        caption=f"From {used.days[0].isoformat()} to {used.days[-1].isoformat()}.",
    )


def _tokens(models: tuple[ModelUse, ...]) -> Bars:
    return Bars(
        key="tokens",
        title="Tokens read and written, by model",
        x=Axis("tokens"),
        rows=[
            Bar(OwnName(one.model), float(one.num_prompt_tokens + one.num_new_tokens), _short(one)) for one in models
        ],
    )


def _short(one: ModelUse) -> str:
    total = one.num_prompt_tokens + one.num_new_tokens
    return f"{total / 1e6:.3g} M" if total >= 1e6 else f"{total / 1e3:.3g} k" if total >= 1e3 else str(total)
