"""The pages as one app, which answers where the API has no route (`luthier.server.home` puts the two together).

Pages are found: a feature's are in its modules `pages`, `*_pages` or in its folder `pages`, routers with their routes
and a `Page` for what the navigation leads to. A package adds one by the entry point group `luthier.pages`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from types import ModuleType
from typing import Final

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount

from luthier import features
from luthier.core.access import SCOPES
from luthier.core.errors import RequestError
from luthier.core.system.libraries import version
from luthier.features.accounts import sign_in_pages as sign_in
from luthier.features.home_page.progress import Rail
from luthier.features.human_eval import rate_pages as rate
from luthier.features.inbox.assignments import Assignments
from luthier.features.runs.series import RunSeries
from luthier.features.runs.state import EvaluationCache
from luthier.platform.auth.oidc import OidcClient, Provider
from luthier.platform.auth.password_hashing import SignInQueue
from luthier.platform.auth.rate_limiter import FailureLimit
from luthier.platform.home.context import Context
from luthier.platform.ui import language_choice, page_work
from luthier.platform.ui.assets import Assets
from luthier.platform.ui.errors import add_error_pages
from luthier.platform.ui.form_drafts import FormDrafts
from luthier.platform.ui.forms import ShownOnce, SubmissionCache, SubmitOnce
from luthier.platform.ui.page_work import PageWork
from luthier.platform.ui.render import Page, declared
from luthier.platform.ui.security import PLUG_INS, NulCheck, Policy, SameOrigin
from luthier.platform.ui.visitor import needs
from luthier.platform.ui.work_progress import ThreadProgress

_MODULES: Final = re.compile(r"(.*[._])?pages(\..*)?")


@cache
def _modules() -> tuple[ModuleType, ...]:
    """Every module of pages, including those of forms with background work and of the choice of language."""
    prefix = f"{features.__name__}."
    found = sorted(one.name for one in walk_packages(features.__path__, prefix) if _MODULES.fullmatch(one.name))
    return (*map(import_module, found), page_work, language_choice)


def _declared_in_modules() -> Mapping[str, Page]:
    found = [value for module in _modules() for value in vars(module).values() if isinstance(value, Page)]
    return {page.address.strip("/") or "home": page for page in found}


PAGES: Final[Mapping[str, Page]] = _declared_in_modules()
"""The pages of the navigation that features declare, by address."""


def page_routes() -> Iterator[APIRoute]:
    """Every route of the pages, in the order in which they are tried: `/runs/compare` before `/runs/{run_id}`."""
    ours = {id(one): one for module in _modules() for one in vars(module).values() if isinstance(one, APIRouter)}
    theirs = [_guarded(name, page) for name, page in declared().items() if name not in PAGES]
    routes = []
    for router in (*ours.values(), *theirs):
        for route in router.routes:
            assert isinstance(route, APIRoute), "routers of pages hold routes and no other routers"
            routes.append(route)
    yield from sorted(routes, key=_generality)


def _generality(route: APIRoute) -> list[int]:
    """Of each part of a path whether it is written out (0), any text (1) or all the rest (2)."""
    return [2 if ":path}" in part else 1 if "{" in part else 0 for part in route.path.split("/")]


def _guarded(name: str, page: Page) -> APIRouter:
    """The routes of a plug-in's page, each behind its scope.

    Raises:
        RequestError: It has no router, an address or a route that is not below its own place, or another page's key.
    """
    place = f"{PLUG_INS}{name}"
    paths = [getattr(route, "path", "") for route in page.router.routes] if page.router is not None else []
    strays = [path for path in (page.address, *paths) if path != place and not path.startswith(f"{place}/")]
    if page.router is None or page.address not in paths or strays:
        raise RequestError(
            f"the page {name!r} of a plug-in has address {page.address} and the routes {', '.join(paths) or 'none'}",
            expected=f"a router with {place}, and no route that is not below it",
            do="ask the author of the package that provides it, or remove the package",
        )
    if page.key and (others := [one.name for one in declared().values() if one is not page and one.key == page.key]):
        raise RequestError(
            f"the page {name!r} of a plug-in has the key {page.key}, as {others[0]} has",
            expected="a letter that leads to no other page, or none",
            do="ask the author of the package that provides it, or remove the package",
        )
    check = [Depends(needs(*(SCOPES if page.scope is None else (page.scope,))))]
    guarded = APIRouter()
    for route in page.router.routes:
        assert isinstance(route, APIRoute), "routers of pages hold routes and no other routers"
        # The scope first: a handler's own dependencies may read what this visitor must not.
        needed = [*check, *route.dependencies]
        guarded.add_api_route(
            route.path, route.endpoint, methods=sorted(route.methods or ()), dependencies=needed, response_model=None
        )
    return guarded


def create_pages(context: Context) -> FastAPI:
    """The pages of an open home. The caller closes the context, once the app has shut down."""
    app = FastAPI(title="Luthier", version=version("luthier"), openapi_url=None, redirect_slashes=True)
    assets = Assets()
    app.state.context, app.state.assets = context, assets
    failures = FailureLimit("wrong keys, passwords or links", sign_in.FAILURES_PER_MINUTE)
    app.state.sign_ins = SignInQueue(context.password_threads, failures)
    provider = Provider.of(context.settings)
    app.state.oidc = None if provider is None else OidcClient(provider)
    app.state.rating_failures = FailureLimit("invalid links", rate.FAILURES_PER_MINUTE)
    app.state.shown_once, app.state.page_work, app.state.form_drafts = ShownOnce(), PageWork(), FormDrafts()
    # What services report while a form's work runs in a thread is shown by the page that waits for it.
    context.progress = ThreadProgress(context.progress)
    app.state.upload_answers = SubmissionCache()
    app.state.judged, app.state.run_series = EvaluationCache(context), RunSeries(context)
    app.state.rail, app.state.assignments = Rail(context), Assignments(context)
    routes = tuple(page_routes())  # hundreds, in order
    # Where a person may be sent back to after signing in.
    app.state.page_paths = {route.path for route in routes if "GET" in (route.methods or ())}
    add_error_pages(app)
    # The last one is the outermost: a request of another site is refused before its form is looked at.
    app.add_middleware(SubmitOnce)
    app.add_middleware(NulCheck)
    app.add_middleware(SameOrigin)
    app.add_middleware(Policy)
    app.router.routes.append(Mount("/assets", assets, name="assets"))
    # As they are: `include_router` builds each route again, which the first request to it waits for.
    app.router.routes.extend(routes)
    return app
