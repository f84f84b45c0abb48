"""A server with a few routes of its own, and clients with keys for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel
from starlette.testclient import TestClient

from luthier.core.access import Scope
from luthier.core.errors import ConflictError
from luthier.platform.auth.service import charge_tokens, create_key
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Asker, HomeContext, Reader, Trainer
from luthier.platform.http.idempotency import once
from luthier.server.api import create_app

MakeClient = Callable[..., TestClient]


class Thing(BaseModel):
    size: int


@pytest.fixture
def made() -> list[int]:
    """The sizes of all things that were made, in order."""
    return []


@pytest.fixture
def things_app(home: Context, made: list[int]) -> FastAPI:
    router = APIRouter()

    @router.post("/v1/things")
    def make(thing: Thing, request: Request, caller: Trainer, context: HomeContext) -> Any:
        def work() -> dict[str, int]:
            if thing.size < 0:
                raise ConflictError("a thing of negative size", expected="a size above 0", do="grow it")
            if thing.size > 100:
                raise RuntimeError("a bug")
            made.append(thing.size)
            return {"size": thing.size, "number": len(made)}

        return once(request, caller, context, work)

    @router.get("/v1/things")
    def read(caller: Reader) -> dict[str, str]:
        return {"project": caller.project_id}

    @router.post("/v1/answers")
    def answer(caller: Asker, context: HomeContext, num_tokens: Annotated[int, Query()]) -> dict[str, int | None]:
        return {"left": charge_tokens(context, caller, num_tokens)}

    @router.get("/v1/bug")
    def bug(caller: Reader) -> None:
        raise KeyError("sk-luthier-0123456789")

    @router.get("/v1/broken-stream")
    def broken(caller: Reader) -> StreamingResponse:
        def parts() -> Iterator[bytes]:
            yield b"a"
            raise KeyError("x")

        return StreamingResponse(parts())

    @router.get("/page")
    def page() -> HTMLResponse:
        return HTMLResponse("<p>hello</p>")

    @router.post("/v1/files/")  # beside the real one: a large body may come here, too
    async def upload(request: Request, caller: Trainer) -> dict[str, int]:
        return {"num_bytes": sum([len(chunk) async for chunk in request.stream()])}

    @router.get("/v1/ids")
    def ids(request: Request, caller: Reader) -> dict[str, str | None]:
        return {"request": request.state.request_id, "client": request.state.client_request_id}

    app = create_app(home)
    app.include_router(router)
    return app


@pytest.fixture
def client(home: Context, things_app: FastAPI) -> Iterator[MakeClient]:
    """Makes a client with a new key of these scopes and limits; all of them are of one server."""
    with TestClient(things_app) as first:

        def make(*scopes: Scope, project: str = "default", **limits: Any) -> TestClient:
            _, key = create_key(home, "test", scopes=scopes or ("admin",), project=project, **limits)
            other = TestClient(things_app)
            other.portal, other.headers["Authorization"] = first.portal, f"Bearer {key}"
            return other

        yield make
