"""The app: every router, every middleware, in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, FastAPI

from luthier.api.errors import add_error_handlers
from luthier.api.openai import checkpoints, files, fine_tuning, graders, uploads
from luthier.service.context import Context

_ROUTERS: tuple[APIRouter, ...] = (
    files.router,
    uploads.router,
    fine_tuning.router,
    checkpoints.router,
    graders.router,
)


def create_app(context: Context) -> FastAPI:
    """The app that serves an open home; the caller closes the context, once the app has shut down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = FastAPI(title="Luthier", version=version("luthier"), lifespan=lifespan, redirect_slashes=False)
    app.state.context = context
    add_error_handlers(app)
    for router in _ROUTERS:
        app.include_router(router)
    return app
