"""/api/v1/usage: what a project has asked of models."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from luthier.features.usage.service import usage
from luthier.platform.auth.store import DayOfUse
from luthier.platform.http.authentication import HomeContext, Reader
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import ListObject

router = APIRouter(prefix="/api/v1/usage", tags=["usage"])


class UsageView(BaseModel):
    """What one key has asked of one target on one day (UTC).

    key_id: None for requests from the server's own machine. model: as requested. cost_usd: None
    where the server has no prices.
    """

    object: Literal["usage"] = "usage"
    day: str
    key_id: str | None
    model: str
    target: str
    num_requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


class UsageList(ListObject[UsageView]):
    """Newest day first."""


@router.get("", summary="Usage", responses=documented())
def show(
    context: HomeContext,
    caller: Reader,
    days: Annotated[int, Query(ge=1, le=3660)] = 30,
    model: Annotated[str | None, Query(min_length=1, max_length=255, pattern=r"^[^\x00]*$")] = None,
) -> UsageList:
    """By key, model, target and day. days: how far to look back, today included. model: as requested."""
    return UsageList(data=[_view(row) for row in usage(context, caller.project_id, num_days=days, model=model)])


def _view(row: DayOfUse) -> UsageView:
    return UsageView(
        day=row.day,
        key_id=row.key_id or None,
        model=row.model,
        target=row.target,
        num_requests=row.num_requests,
        prompt_tokens=row.num_prompt_tokens,
        completion_tokens=row.num_new_tokens,
        cost_usd=row.cost_usd,
    )
