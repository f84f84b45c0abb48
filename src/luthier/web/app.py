"""The pages as one app, which answers where the API has no route (`luthier.home_server` puts the two together)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount

from luthier.service.context import Context
from luthier.service.failure_limits import FailureLimit
from luthier.service.run_list import Judged
from luthier.service.run_series import RunSeries
from luthier.service.sign_in_queue import SignInQueue
from luthier.web.assets import Assets
from luthier.web.csrf import SameOrigin
from luthier.web.errors import add_error_pages
from luthier.web.form_tokens import SubmitOnce
from luthier.web.page_work import PageWork
from luthier.web.pages import (
    assessments,
    compare,
    dataset_annotate,
    dataset_audit,
    dataset_compare,
    dataset_map,
    dataset_repair,
    dataset_split,
    dataset_tokens,
    dataset_upload,
    datasets,
    deployments,
    evaluation_orders,
    evaluations,
    exports,
    home,
    model,
    models,
    monitor,
    new_run,
    pipelines,
    playground,
    rate,
    rating_panels,
    review,
    run,
    run_series,
    runs,
    settings,
    sign_in,
    studies,
    working,
)
from luthier.web.policy import Policy
from luthier.web.shown_once import ShownOnce

ROUTERS: tuple[APIRouter, ...] = (
    sign_in.router,
    home.router,
    dataset_upload.router,  # before /datasets/{dataset_id}
    datasets.router,
    dataset_audit.router,
    dataset_repair.router,
    dataset_tokens.router,
    dataset_annotate.router,
    dataset_map.router,
    dataset_split.router,
    dataset_compare.router,
    new_run.router,
    runs.router,
    compare.router,
    run_series.router,
    run.router,  # after all that has an address of its own below /runs/
    studies.router,
    pipelines.router,
    rating_panels.router,  # before /evaluations/{evaluation_id}
    evaluation_orders.router,  # before, too
    assessments.router,  # before /evaluations/{evaluation_id}
    evaluations.router,
    playground.router,
    models.router,
    model.router,
    deployments.router,
    exports.router,
    monitor.router,
    review.router,
    *settings.ROUTERS,
    working.router,  # in no navigation: forms lead there
    rate.router,  # in no navigation: raters come by a link
)
"""In the order of the pages' navigation."""


def page_routes() -> Iterator[APIRoute]:
    """Every route of the pages, in the order in which they are tried."""
    for router in ROUTERS:
        for route in router.routes:
            assert isinstance(route, APIRoute), "routers of pages hold routes and no other routers"
            yield route


def create_pages(context: Context) -> FastAPI:
    """The pages of an open home. The caller closes the context, once the app has shut down."""
    app = FastAPI(title="Luthier", version=version("luthier"), openapi_url=None, redirect_slashes=True)
    assets = Assets()
    app.state.context, app.state.assets = context, assets
    failures = FailureLimit("wrong keys, passwords or links", sign_in.FAILURES_PER_MINUTE)
    app.state.sign_ins = SignInQueue(context.password_threads, failures)
    app.state.rating_failures = FailureLimit("links that let nobody in", rate.FAILURES_PER_MINUTE)
    app.state.shown_once, app.state.page_work = ShownOnce(), PageWork()
    app.state.judged, app.state.run_series = Judged(context), RunSeries(context)
    app.state.page_paths = {route.path for route in page_routes() if "GET" in (route.methods or ())}
    add_error_pages(app)
    app.add_middleware(SubmitOnce)
    app.add_middleware(SameOrigin)
    app.add_middleware(Policy)
    app.router.routes.append(Mount("/assets", assets, name="assets"))
    # As they are: `include_router` builds each route again, which the first request to it waits for.
    app.router.routes.extend(page_routes())
    return app
