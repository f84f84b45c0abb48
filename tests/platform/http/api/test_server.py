"""The HTTP server of the app: how it ends."""

from __future__ import annotations

import asyncio
import http.client
import signal
import socket
import threading
import time
from typing import Any

import pytest
from fastapi import FastAPI, Request

from luthier.platform.home.context import Context
from luthier.platform.http import server
from luthier.server.api import create_app


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture
def app(home: Context, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    # Nobody asks any more once these tests end the server; the one that looks at this sets it by itself.
    monkeypatch.setattr(server, "_STILL_ANSWERS_SECONDS", 0.01)
    app = create_app(home)
    app.state.entered, app.state.release = threading.Event(), threading.Event()

    @app.get("/slow")
    def slow() -> str:
        app.state.entered.set()
        app.state.release.wait(120)
        return "whole"

    return app


def serve(app: FastAPI, home: Context, during: Any) -> None:
    """Serve on a port of its own while `during` runs in a thread with the port and the server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = server.make_server(app, home, app.state.readiness)
        failures: list[BaseException] = []

        def run() -> None:
            try:
                during(listening.getsockname()[1])
            except BaseException as error:  # noqa: BLE001 - told by the test's own thread
                failures.append(error)
                signal.raise_signal(signal.SIGINT)

        thread = threading.Thread(target=run)
        thread.start()
        asyncio.run(made.serve(sockets=[listening]))
        thread.join()
        assert not failures, failures


def test_it_says_that_it_ends_before_it_ends_and_finishes_what_is_under_way(
    app: FastAPI, home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_STILL_ANSWERS_SECONDS", 600)  # on however slow a machine; a second signal ends it
    answers: list[tuple[int, bytes]] = []

    def during(port: int) -> None:
        assert get(port, "/readyz")[0] == 200
        asking = threading.Thread(target=lambda: answers.append(get(port, "/slow")))
        asking.start()
        app.state.entered.wait(120)
        signal.raise_signal(signal.SIGTERM)
        while get(port, "/readyz")[0] != 503:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)
        app.state.release.set()
        asking.join()

    serve(app, home, during)
    assert answers == [(200, b'"whole"')]


def test_what_never_ends_is_broken_off(app: FastAPI, home: Context) -> None:
    home.settings = home.settings.model_copy(update={"drain_seconds": 1.0})
    endings: list[BaseException | int] = []

    @app.get("/endless")
    async def endless() -> None:
        app.state.entered.set()
        await asyncio.sleep(600)

    def ask(port: int) -> None:
        try:
            endings.append(get(port, "/endless")[0])
        except OSError as error:
            endings.append(error)

    def during(port: int) -> None:
        asking = threading.Thread(target=ask, args=(port,))
        asking.start()
        app.state.entered.wait(120)
        signal.raise_signal(signal.SIGTERM)
        asking.join()

    serve(app, home, during)
    assert len(endings) == 1


@pytest.mark.parametrize(
    ("trusted", "given", "client"),
    [
        ("", "203.0.113.9", "127.0.0.1"),
        ("192.0.2.1", "203.0.113.9", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("192.0.2.1 127.0.0.0/8", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "127.0.0.1, 203.0.113.9", "203.0.113.9"),
    ],
)
def test_a_proxy_is_believed_only_where_a_setting_names_it(
    app: FastAPI, home: Context, caplog: pytest.LogCaptureFixture, trusted: str, given: str, client: str
) -> None:
    seen: list[tuple[str, str]] = []

    @app.get("/whence")
    def whence(request: Request) -> None:
        assert request.client is not None
        seen.append((request.client.host, request.url.scheme))

    def ask(port: int, _: Any = None) -> None:
        for _again in range(2):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request("GET", "/whence", headers={"X-Forwarded-For": given, "X-Forwarded-Proto": "https"})
            assert connection.getresponse().status == 200
            connection.close()
        signal.raise_signal(signal.SIGINT)

    home.settings.__dict__["trusted_proxies"] = trusted
    serve(app, home, ask)
    is_believed = client != "127.0.0.1"
    assert seen == [(client, "https" if is_believed else "http")] * 2
    told = [one.getMessage() for one in caplog.records if "X-Forwarded-For" in one.getMessage()]
    assert len(told) == (0 if is_believed else 1), "said once, not with every request"
    assert all("LUTHIER_TRUSTED_PROXIES" in one for one in told)
