"""Downloads from addresses of users: each connection, also of a redirect, goes to an address that was checked."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from luthier.core.errors import DataSourceError
from luthier.core.system.process_setup import start_daemon
from luthier.platform.http.vetted_transport import VettedTransport
from luthier.platform.notifications import outgoing


class Site:
    """A server on this machine, and what it was asked."""

    def __init__(self) -> None:
        self.location, self.hosts, self.port = "", list[str](), 0


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            state.hosts.append(self.headers["Host"])
            location, state.location = state.location, ""
            self.send_response(302 if location else 200)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0" if location else "2")
            self.end_headers()
            self.wfile.write(b"" if location else b"ok")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = start_daemon(partial(server.serve_forever, 0.02), "site")
    state.port = server.server_address[1]
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def get(url: str, *, may_reach_private: bool) -> httpx2.Response:
    transport = VettedTransport(may_reach_private=may_reach_private)
    with httpx2.Client(transport=transport, follow_redirects=True, trust_env=False) as client:
        return client.get(url)


def resolving(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> None:
    """Have names lead to addresses; each answer of the list is given once, the last one again and again."""

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        answers = names.get(host, [host])
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(outgoing.socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_an_address_that_is_not_public_is_refused(host: str) -> None:
    with pytest.raises(DataSourceError, match="not on the public internet"):
        get(f"http://{host}:9/rows.jsonl", may_reach_private=False)


def test_the_address_behind_a_name_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, {"rows.example": ["10.1.2.3"]})
    with pytest.raises(DataSourceError, match=r"^rows\.example leads to") as refused:
        get("https://rows.example/a.jsonl", may_reach_private=False)
    assert "10.1.2.3" not in str(refused.value)


def test_metadata_services_stay_closed_where_private_networks_are_open() -> None:
    for host in ("169.254.169.254", "100.100.100.200"):
        with pytest.raises(DataSourceError, match="not on the public internet"):
            get(f"http://{host}/latest", may_reach_private=True)


def test_a_redirect_is_checked_as_the_first_address_is(site: Site) -> None:
    site.location = "http://169.254.169.254/latest/meta-data"
    with pytest.raises(DataSourceError, match=r"^169\.254\.169\.254 leads to"):
        get(f"http://127.0.0.1:{site.port}/", may_reach_private=True)
    assert len(site.hosts) == 1


def test_a_name_is_looked_up_once_and_the_address_that_was_checked_is_connected_to(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second answer of the name server leads to where nothing listens: it is never asked for.
    resolving(monkeypatch, {"rows.example": ["127.0.0.1", "127.0.0.2"], "127.0.0.1": ["127.0.0.1"]})
    answer = get(f"http://rows.example:{site.port}/a", may_reach_private=True)
    assert (answer.status_code, answer.text) == (200, "ok")
    assert site.hosts == [f"rows.example:{site.port}"], "the server sees the name"


def test_an_unknown_name_is_an_error_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(outgoing.socket, "getaddrinfo", unknown)
    with pytest.raises(httpx2.ConnectError, match=r"rows\.example is not known"):
        get("https://rows.example/a.jsonl", may_reach_private=False)


def test_a_certificate_is_checked_for_the_name_and_not_for_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    real = ssl.SSLContext.wrap_socket

    def wrap(self: ssl.SSLContext, sock: socket.socket, *given: Any, **named: Any) -> Any:
        asked.append(named.get("server_hostname"))
        return real(self, sock, *given, **named)

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    resolving(monkeypatch, {"rows.example": ["127.0.0.1"], "127.0.0.1": ["127.0.0.1"]})
    start_daemon(lambda: listener.accept()[0].close(), "closes at once")
    with pytest.raises(httpx2.TransportError):
        get(f"https://rows.example:{port}/a", may_reach_private=True)
    listener.close()
    assert asked == ["rows.example"]
