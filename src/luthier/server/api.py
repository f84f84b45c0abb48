"""The app: every router, every middleware, in one place, and its periodic sweeping.

Sweeping removes what has expired, and counts what could not be counted before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Final

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.core.errors import LuthierError
from luthier.core.system.clock_jump import JumpWatch, elapsed
from luthier.core.system.libraries import version
from luthier.features.accounts import invitations_api as invitations
from luthier.features.accounts import keys_api as keys
from luthier.features.batches import api as batches
from luthier.features.datasets import api as datasets
from luthier.features.deployments import api as deployments
from luthier.features.evals_api import api as evals
from luthier.features.evaluation_orders import api as evaluation_orders
from luthier.features.exports.folders import remove_abandoned
from luthier.features.feedback import api as feedback
from luthier.features.files import api as files
from luthier.features.files import uploads_api as uploads
from luthier.features.finetuning_api import api as fine_tuning
from luthier.features.inbox import api as inbox
from luthier.features.mcp_server.api import mcp_route
from luthier.features.model_browser import api as base_models
from luthier.features.planning import api as plans
from luthier.features.runs import api as runs
from luthier.features.runs.service import sweep_removed
from luthier.features.serving.api import (
    chat,
    checkpoints,
    completions,
    conversations,
    graders,
    messages,
    models,
    moderations,
    pooling,
    reranking,
    stored,
)
from luthier.features.serving.api.responses import api as responses
from luthier.features.tinker_api import api as tinker
from luthier.features.tinker_api import downloads as tinker_downloads
from luthier.features.tinker_api.checkpoints import sweep_checkpoints
from luthier.features.traffic.conversations import sweep_conversations
from luthier.features.traffic.files import sweep as sweep_traffic
from luthier.features.traffic.stored_completions import sweep_stored_completions
from luthier.features.traffic.stored_responses import sweep_stored_responses
from luthier.features.usage import api as usage
from luthier.features.webhooks import api as webhooks
from luthier.features.workflows import api as workflows
from luthier.platform.auth.authenticator import Authenticator
from luthier.platform.files.service import sweep_files
from luthier.platform.home.context import Context
from luthier.platform.http import health, metrics
from luthier.platform.http.anthropic import AnthropicAnswers
from luthier.platform.http.authentication import GUARDED, KeyFirst
from luthier.platform.http.errors import add_error_handlers, document_failures, lacks_version
from luthier.platform.http.health import InThread, Liveness, Readiness
from luthier.platform.http.idempotency import add_idempotency
from luthier.platform.http.metrics import Metrics, Observe
from luthier.platform.http.middleware import BodyLimit, Frame, HostCheck, JsonBody, NulCheck
from luthier.platform.http.poll_cache import PollCache
from luthier.platform.jobs.retention import sweep_job_files

SWEEP_SECONDS: Final = 60.0
_JOB_FILES_SECONDS: Final = 3600.0
"""Between two sweeps of the files of jobs, which look at each folder; what they remove is days old."""
WAIT_AFTER_JUMP_SECONDS: Final = 3600.0
"""Nothing is deleted by its age for so long after the clock was set forward: it may be set right again."""
_JUMP_SECONDS: Final = 60.0
log = logging.getLogger("luthier.api")


@contextlib.asynccontextmanager
async def swept(context: Context, every_seconds: float = SWEEP_SECONDS) -> AsyncIterator[None]:
    """Sweep now and then while the block runs; a sweep that is running when it ends is waited for."""
    stop = asyncio.Event()
    task = asyncio.create_task(_sweep(context, every_seconds, stop))
    try:
        yield
    finally:
        # Not cancelled: that would end the wait for a thread, and the thread would work on with a closed context.
        stop.set()
        await task


async def _sweep(context: Context, every_seconds: float, stop: asyncio.Event) -> None:
    steady, job_files_at = _SteadyClock(), -math.inf
    while not await _is_set_within(stop, every_seconds):
        try:
            # Charges first: what an answer has used is counted even while nothing may be deleted.
            await run_in_threadpool(context.late_charges.settle)
            if not steady.is_steady(await run_in_threadpool(context.access.now)):
                continue
        except (LuthierError, OSError) as error:
            log.warning("clearing away what has expired has to wait: %s", error)
            continue
        except Exception:
            # A bug ends one sweep, and not the sweeping for as long as the server runs.
            log.exception("clearing away what has expired has to wait: an error of our own")
            continue
        sweeps: list[Callable[[Context], object]] = [
            sweep_files,
            sweep_traffic,
            sweep_stored_completions,
            sweep_stored_responses,
            sweep_conversations,
            sweep_removed,
            remove_abandoned,
            sweep_checkpoints,
        ]
        if elapsed() >= job_files_at:
            sweeps.append(sweep_job_files)
            job_files_at = elapsed() + _JOB_FILES_SECONDS
        # Each on its own: one that fails must not keep the others from their work.
        for sweep in sweeps:
            if stop.is_set():
                return
            try:
                await run_in_threadpool(sweep, context)
            except (LuthierError, OSError) as error:  # the next one may find the store or the database again
                log.warning("clearing away what has expired failed: %s", error)
            except Exception:
                log.exception("clearing away what has expired failed: an error of our own")


async def _is_set_within(stop: asyncio.Event, seconds: float) -> bool:
    """Whether it is set, now or within some time."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()


class _SteadyClock:
    """Whether the clock can be trusted with what cannot be undone: not just after it was set forward."""

    def __init__(self, clock: Callable[[], float] = elapsed) -> None:
        self._clock, self._jumps, self._from = clock, JumpWatch(clock), -math.inf

    def is_steady(self, now: float) -> bool:
        """now: what the clock shows, seconds since 1970."""
        jumped = self._jumps.look(now)
        if jumped > _JUMP_SECONDS:
            # On the clock that is never set: setting the wall clock right again does not shorten the wait.
            self._from = self._clock() + WAIT_AFTER_JUMP_SECONDS
            log.warning(
                "the clock was set forward by %.0f s; expected: a clock that runs evenly; what to do: set it right "
                "if it is wrong: until %.0f s have passed nothing is deleted by its age",
                jumped,
                WAIT_AFTER_JUMP_SECONDS,
            )
        return self._clock() >= self._from


# What a server for some models alone (`Context.only`) does not have. The first: clients poll it.
_OF_A_HOME: tuple[APIRouter, ...] = (
    fine_tuning.router,
    keys.router,
    invitations.router,
    plans.router,
    runs.router,
    webhooks.router,
    datasets.router,
    deployments.router,
    evaluation_orders.router,
    workflows.router,
    usage.router,
    base_models.router,
    feedback.router,
    inbox.router,
    files.router,
    uploads.router,
    checkpoints.router,
    graders.router,
    stored.router,
    conversations.router,
    evals.router,
    batches.router,
    tinker.router,
    tinker_downloads.router,
)
_ALWAYS: tuple[APIRouter, ...] = (
    health.router,
    metrics.router,
    models.router,
    chat.router,
    responses.router,
    completions.router,
    messages.router,
    pooling.router,
    reranking.router,
    moderations.router,
)


def create_app(context: Context, authenticator: Authenticator | None = None, pages: ASGIApp | None = None) -> FastAPI:
    """The app that serves an open home, or only the models of `context.only`.

    Args:
        context: The open home. The caller closes it after the app has shut down.
        authenticator: Checks API keys. By default, the keys of the home.
        pages: Answers all addresses outside the API; None for a server without pages.
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
        # A redirect would make clients send the key and the body twice, and some drop the header on the way.
        redirect_slashes=False,
        # FastAPI's pages load scripts from elsewhere, which neither works offline nor belongs next to an API with keys.
        docs_url=None,
        redoc_url=None,
    )
    app.state.context, app.state.authenticator = context, authenticator or Authenticator(context)
    app.state.readiness, app.state.metrics = Readiness(context), Metrics(context)
    app.state.liveness, app.state.looking = Liveness(context), InThread(app.state.readiness.checks)
    add_idempotency(app.state)
    add_error_handlers(app)
    # From the outside in: log and metrics, request id and bugs, Host, key, size, JSON, cache. A request without a key
    # is refused before its body is read, and only checked requests reach the cache.
    # The last one is the outermost.
    app.add_middleware(PollCache, context=context, authenticator=app.state.authenticator)
    app.add_middleware(JsonBody)
    app.add_middleware(BodyLimit, most_bytes=context.settings.max_request_bytes)
    app.add_middleware(NulCheck, below=GUARDED)
    app.add_middleware(KeyFirst)
    app.add_middleware(HostCheck, allowed_hosts=context.settings.allowed_hosts)
    app.add_middleware(Frame)
    app.add_middleware(AnthropicAnswers)  # beyond Frame: it rewrites what all layers refuse
    app.add_middleware(Observe, metrics=app.state.metrics)  # beyond Frame: it reads the id that Frame has given
    for router in (*(_OF_A_HOME if is_home else ()), *_ALWAYS):
        # As they are: `include_router` builds each route again, which the first request to it waits for.
        app.router.routes.extend(router.routes)
    if is_home:
        app.router.routes.append(mcp_route(context))
    document_failures(app)
    if pages is not None:
        # The router's own fallback: no catch-all route that would hide 404 and 405 of the API.
        app.router.default = _Elsewhere(pages, app.router.default)
    return app


def _is_astray(scope: Scope) -> bool:
    """Whether a client of the API has left `/v1` out: no browser sends a key and wants JSON alone."""
    headers = Headers(scope=scope)
    has_key = "x-api-key" in headers or headers.get("authorization", "").lower().startswith("bearer ")
    accepts = headers.get("accept", "")
    return has_key and "json" in accepts and "html" not in accepts and lacks_version(scope["path"])


class _Elsewhere:
    """Answers for addresses that no route of the API has: the pages, but under the API's own what it answers itself."""

    def __init__(self, pages: ASGIApp, unknown: ASGIApp) -> None:
        self._pages, self._unknown = pages, unknown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_api = scope["type"] != "http" or scope["path"].startswith(GUARDED) or _is_astray(scope)
        await (self._unknown if is_api else self._pages)(scope, receive, send)
