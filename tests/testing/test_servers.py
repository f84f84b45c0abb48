"""A server in a thread of the test answers as one in a process does, and is gone at the end of its block."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from fastapi import FastAPI

from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import app_server, home_server


def status(url: str, key: str | None) -> int:
    try:
        with urlopen(Request(url, headers={"Authorization": f"Bearer {key}"}), timeout=120) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def test_it_serves_a_home_and_sees_what_others_change_in_it(tmp_path: Path) -> None:
    with home_server(tmp_path / "home") as server:
        with Context.open(server.home) as context:
            added = create_key(context, "added", scopes=("read",))[1]
        assert [status(f"{server.url}/v1/models", key) for key in (server.key, added, "wrong")] == [200, 200, 401]
        assert status(f"{server.url}/sign-in", None) == 200, "pages as well"
    address = urlsplit(server.url)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(address.hostname), address.port or 0))


def test_an_app_that_does_not_start_is_said_so(tmp_path: Path) -> None:
    @asynccontextmanager
    async def failing(_: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no")
        yield

    app = FastAPI(lifespan=failing)
    app.state.readiness = None
    with (
        Context.open(tmp_path / "home") as context,
        pytest.raises(RuntimeError, match="the app did not start"),
        app_server(app, context),
    ):
        pass
