"""GET /healthz and /readyz: for whoever watches over processes. Neither needs a key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from luthier.service.health import Readiness

router = APIRouter(tags=["operation"])


class ReadinessView(BaseModel):
    """checks: of each thing that work needs `ok`, or what is wrong with it."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


def readiness_of(request: Request) -> Readiness:
    """What looks after the readiness of this server."""
    found: Readiness = request.app.state.readiness
    return found


@router.get("/healthz", summary="The process is alive")
async def healthz() -> dict[str, str]:
    """Answers whatever the database does: who gets no answer from this should start the process anew."""
    return {"status": "ok"}


@router.get("/readyz", summary="The server can do its work", responses={503: {"model": ReadinessView}})
def readyz(request: Request, response: Response) -> ReadinessView:
    """503 with the reasons while it should be sent no requests: also while it shuts down."""
    checks = readiness_of(request).checks()
    is_ready = all(check.problem is None for check in checks)
    response.status_code = 200 if is_ready else 503
    return ReadinessView(
        status="ok" if is_ready else "unavailable", checks={check.name: check.problem or "ok" for check in checks}
    )
