"""The app: every router, every middleware, in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.api import health, metrics
from luthier.api.document import document_failures
from luthier.api.errors import add_error_handlers
from luthier.api.idempotency import add_idempotency
from luthier.api.liveness import InThread, Liveness
from luthier.api.metrics import Metrics
from luthier.api.middleware.body import BodyLimit
from luthier.api.middleware.frame import Frame
from luthier.api.middleware.hosts import HostCheck
from luthier.api.middleware.json_body import JsonBody
from luthier.api.middleware.key_first import GUARDED, KeyFirst
from luthier.api.native import base_models, deployments, evaluation_orders, feedback, keys, plans, runs, usage, webhooks
from luthier.api.observe import Observe
from luthier.api.openai import chat, checkpoints, completions, embeddings, files, fine_tuning, graders, models, uploads
from luthier.api.poll_cache import PollCache
from luthier.api.sweeping import swept
from luthier.service.context import Context
from luthier.service.gate import Gate
from luthier.service.health import Readiness

_ROUTERS: tuple[APIRouter, ...] = (
    fine_tuning.router,  # first, since routers are tried in turn, and clients poll this one
    health.router,
    metrics.router,
    keys.router,
    plans.router,
    runs.router,
    webhooks.router,
    deployments.router,
    evaluation_orders.router,
    usage.router,
    base_models.router,
    feedback.router,
    files.router,
    uploads.router,
    checkpoints.router,
    graders.router,
    models.router,
    chat.router,
    completions.router,
    embeddings.router,
)
# What a server for some models alone (`Context.only`) does not have.
_OF_A_HOME = (
    keys.router,
    plans.router,
    runs.router,
    webhooks.router,
    deployments.router,
    evaluation_orders.router,
    usage.router,
    base_models.router,
    feedback.router,
    files.router,
    uploads.router,
    fine_tuning.router,
    checkpoints.router,
    graders.router,
)


def create_app(context: Context, gate: Gate | None = None, pages: ASGIApp | None = None) -> FastAPI:
    """The app that serves an open home, or the models of `context.only`; gate: who is let in, keys of the home else.

    pages: what answers where no address of the API was asked for; None: nothing does.

    The caller closes the context, once the app has shut down.
    """
    is_home = context.only is None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with swept(context) if is_home else nullcontext():
            yield

    app = FastAPI(
        title="Luthier",
        version=version("luthier"),
        lifespan=lifespan,
        redirect_slashes=False,
        # FastAPI's pages load scripts from elsewhere, which neither works offline nor belongs beside an API with keys.
        docs_url=None,
        redoc_url=None,
    )
    app.state.context, app.state.gate = context, gate or Gate(context)
    app.state.readiness, app.state.metrics = Readiness(context), Metrics(context)
    app.state.liveness, app.state.looking = Liveness(context), InThread(app.state.readiness.checks)
    add_idempotency(app.state)
    add_error_handlers(app)
    # The last one is the outermost.
    app.add_middleware(PollCache, context=context, gate=app.state.gate)
    app.add_middleware(JsonBody)
    app.add_middleware(BodyLimit, most_bytes=context.settings.max_request_bytes)
    app.add_middleware(KeyFirst)
    app.add_middleware(HostCheck, allowed_hosts=context.settings.allowed_hosts)
    app.add_middleware(Frame)
    app.add_middleware(Observe, metrics=app.state.metrics)  # beyond Frame: it reads the id that Frame has given
    for router in _ROUTERS:
        if is_home or router not in _OF_A_HOME:
            # As they are: `include_router` builds each route again, which the first request to it waits for.
            app.router.routes.extend(router.routes)
    document_failures(app)
    if pages is not None:
        app.router.default = _Elsewhere(pages, app.router.default)
    return app


class _Elsewhere:
    """Answers for addresses that no route of the API has: the pages, but under the API's own what it answers itself."""

    def __init__(self, pages: ASGIApp, unknown: ASGIApp) -> None:
        self._pages, self._unknown = pages, unknown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_api = scope["type"] != "http" or scope["path"].startswith(GUARDED)
        await (self._unknown if is_api else self._pages)(scope, receive, send)
