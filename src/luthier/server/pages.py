"""The pages as one app, which answers where the API has no route (`luthier.server.home` puts the two together)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount

from luthier.features.accounts import sign_in_pages as sign_in
from luthier.features.assessments import pages as assessments
from luthier.features.datasets.pages import annotate as dataset_annotate
from luthier.features.datasets.pages import audit as dataset_audit
from luthier.features.datasets.pages import compare as dataset_compare
from luthier.features.datasets.pages import datasets
from luthier.features.datasets.pages import map as dataset_map
from luthier.features.datasets.pages import repair as dataset_repair
from luthier.features.datasets.pages import split as dataset_split
from luthier.features.datasets.pages import tokens as dataset_tokens
from luthier.features.datasets.pages import upload as dataset_upload
from luthier.features.deployments import pages as deployments
from luthier.features.evaluation_orders import list_pages as evaluations
from luthier.features.evaluation_orders import pages as evaluation_orders
from luthier.features.exports import pages as exports
from luthier.features.home_page import pages as home
from luthier.features.human_eval import pages as rating_panels
from luthier.features.human_eval import rate_pages as rate
from luthier.features.model_browser import list_pages as models
from luthier.features.model_browser import pages as model
from luthier.features.monitoring import pages as monitor
from luthier.features.monitoring import review_pages as review
from luthier.features.playground import pages as playground
from luthier.features.run_drafts import pages as new_run
from luthier.features.runs import compare_pages as compare
from luthier.features.runs import pages as runs
from luthier.features.runs import run_pages as run
from luthier.features.runs import series_pages as run_series
from luthier.features.runs.list import Judged
from luthier.features.runs.series import RunSeries
from luthier.features.workflows import pages as pipelines
from luthier.features.workflows import studies_pages as studies
from luthier.platform.auth.failure_limits import FailureLimit
from luthier.platform.auth.sign_in_queue import SignInQueue
from luthier.platform.home.context import Context
from luthier.platform.ui import working_page as working
from luthier.platform.ui.assets import Assets
from luthier.platform.ui.csrf import SameOrigin
from luthier.platform.ui.errors import add_error_pages
from luthier.platform.ui.form_tokens import SubmitOnce
from luthier.platform.ui.page_work import PageWork
from luthier.platform.ui.policy import Policy
from luthier.platform.ui.shown_once import ShownOnce
from luthier.server import settings_pages as settings

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
    # Where a person may be sent back to after signing in.
    app.state.page_paths = {route.path for route in page_routes() if "GET" in (route.methods or ())}
    add_error_pages(app)
    # The last one is the outermost: a request of another site is refused before its form is looked at.
    app.add_middleware(SubmitOnce)
    app.add_middleware(SameOrigin)
    app.add_middleware(Policy)
    app.router.routes.append(Mount("/assets", assets, name="assets"))
    # As they are: `include_router` builds each route again, which the first request to it waits for.
    app.router.routes.extend(page_routes())
    return app
