"""The app: every router, every middleware, in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, FastAPI

from luthier.api import health, metrics
from luthier.api.errors import add_error_handlers
from luthier.api.metrics import Metrics
from luthier.api.native import webhooks
from luthier.api.observe import Observe
from luthier.api.openai import files, fine_tuning, uploads
from luthier.service.context import Context
from luthier.service.health import Readiness

_ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    metrics.router,
    webhooks.router,
    files.router,
    fine_tuning.router,
    uploads.router,
)


def create_app(context: Context) -> FastAPI:
    """The app that serves an open home; the caller closes the context, once the app has shut down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = FastAPI(title="Luthier", version=version("luthier"), lifespan=lifespan, redirect_slashes=False)
    app.state.context = context
    app.state.readiness, app.state.metrics = Readiness(context), Metrics(context)
    add_error_handlers(app)
    app.add_middleware(Observe, metrics=app.state.metrics)  # the last one is the outermost: this one must be
    for router in _ROUTERS:
        app.include_router(router)
    return app
