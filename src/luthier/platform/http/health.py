"""GET /healthz and /readyz: for whoever watches over processes. Neither needs a key."""

from __future__ import annotations

from typing import Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from luthier.platform.http.liveness import InThread, Liveness
from luthier.platform.http.readiness import Check, Readiness

router = APIRouter(tags=["operation"])

_READINESS_SECONDS: Final = 10.0


class LivenessView(BaseModel):
    """problems: why the process should be started again; there only where there are any."""

    status: Literal["ok", "unhealthy"]
    problems: dict[str, str] | None = None


class ReadinessView(BaseModel):
    """checks: of each thing that work needs `ok`, or what is wrong with it."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


@router.get(
    "/healthz",
    summary="The process can answer",
    response_model_exclude_none=True,
    responses={503: {"model": LivenessView}},
)
async def healthz(request: Request, response: Response) -> LivenessView:
    """503, with the reasons, where the threads that answer requests are gone: the process should be started again.

    It answers whatever the database does.
    """
    liveness: Liveness = request.app.state.liveness
    problems = await liveness.problems()
    if problems:
        response.status_code = 503
    return LivenessView(status="unhealthy" if problems else "ok", problems=problems or None)


@router.get("/readyz", summary="The server can do its work", responses={503: {"model": ReadinessView}})
async def readyz(request: Request, response: Response) -> ReadinessView:
    """503 with the reasons while it should be sent no requests: also while it shuts down."""
    checks = await _checks(request)
    is_ready = all(check.problem is None for check in checks)
    response.status_code = 200 if is_ready else 503
    return ReadinessView(
        status="ok" if is_ready else "unavailable", checks={check.name: check.problem or "ok" for check in checks}
    )


async def _checks(request: Request) -> tuple[Check, ...]:
    readiness: Readiness = request.app.state.readiness
    if readiness.is_stopping:
        return readiness.checks()
    looking: InThread[tuple[Check, ...]] = request.app.state.looking
    try:
        return await looking.found(_READINESS_SECONDS)
    except TimeoutError:
        return (Check(name="server", problem=f"its checks have not ended for {looking.seconds:.0f} s"),)
