"""Every route needs a key, and no key with `read` alone can change anything: asked of each route that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, routing
from tests.fixtures.one_loop import OneLoop

from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import GUARDED, Reader
from luthier.server.api import create_app


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every route under the prefixes that need a key, those outside the OpenAPI document too."""
    walk: Any = getattr(routing, "iter_route_contexts", iter)  # FastAPI keeps included routers as they are since 0.137
    for route in walk(app.routes):
        path = str(route.path)
        if path.startswith(GUARDED):
            for method in sorted(set(route.methods or ()) - {"HEAD", "OPTIONS"}):
                yield method, re.sub(r"\{[^}]*\}", "x", path)


def open_routes(app: FastAPI) -> list[str]:
    """Routes that answer without a key, or with a wrong one."""
    found = []
    with OneLoop() as loop:
        client = loop.client(app, raise_server_exceptions=False)
        for method, path in routes_of(app):
            body = None if method == "GET" else {}
            for headers in ({}, {"Authorization": "Bearer sk-luthier-wrong"}):
                if client.request(method, path, json=body, headers=headers).status_code != 401:
                    found.append(f"{method} {path}")
    return found


def routes_that_readers_may_change_by(app: FastAPI, key: str) -> list[str]:
    """Routes of other methods than GET that let a key with `read` alone further than to its scope."""
    with OneLoop() as loop:
        client = loop.client(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {key}"})
        return [
            f"{method} {path}"
            for method, path in routes_of(app)
            if method != "GET" and client.request(method, path, json={}).status_code != 403
        ]


@pytest.fixture
def reader_key(home: Context) -> str:
    return create_key(home, "reader", scopes=("read",))[1]


def test_every_route_needs_a_key(home: Context) -> None:
    assert open_routes(create_app(home)) == []


def test_a_reader_changes_nothing(home: Context, reader_key: str) -> None:
    assert routes_that_readers_may_change_by(create_app(home), reader_key) == []


def test_a_route_that_asks_for_nothing_is_not_open_and_would_be_found(home: Context, reader_key: str) -> None:
    router = APIRouter()
    router.add_api_route("/v1/open/{name}", lambda: "anybody", methods=["GET", "POST"], include_in_schema=False)

    @router.delete("/api/v1/lax")
    def lax(caller: Reader) -> None: ...

    app = create_app(home)
    app.include_router(router)
    assert open_routes(app) == []
    found = routes_that_readers_may_change_by(app, reader_key)
    assert {"POST /v1/open/x", "DELETE /api/v1/lax"} <= set(found)
