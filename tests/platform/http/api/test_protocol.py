"""What comes over the wire and is no sound request, against the real server."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request

from luthier.platform.home.context import Context
from luthier.platform.http import server
from luthier.platform.http.server import MAX_HEAD_BYTES, MAX_HEADERS, BoundedHttpProtocol
from luthier.server.api import create_app

HOST = b"Host: 127.0.0.1\r\n"
RELEASES: dict[int, threading.Event] = {}
"""By port: what ends the slow route."""


@pytest.fixture
def port(home: Context) -> Iterator[int]:
    """A real server, with routes that say what they have read."""
    app = create_app(home)

    app.state.release = threading.Event()

    @app.get("/slow")
    def slow() -> str:
        app.state.release.wait(120)
        return "whole"

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, object]:
        return {"body": (await request.body()).decode(), "path": request.url.path}

    with socket.create_server(("127.0.0.1", 0)) as listening:
        for number in _served(app, home, listening):
            RELEASES[number] = app.state.release
            yield number


def _served(app: FastAPI, home: Context, listening: socket.socket) -> Iterator[int]:
    made = server.make_server(app, home, app.state.readiness)
    made.capture_signals = _no_signals  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: asyncio.run(made.serve(sockets=[listening])), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not made.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield listening.getsockname()[1]
    made.should_exit = made.force_exit = True
    thread.join(60)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits for a head or a body for a second; where nothing is left unsaid, it is as patient as usual."""
    monkeypatch.setattr(BoundedHttpProtocol, "head_seconds", 1.0)
    monkeypatch.setattr(BoundedHttpProtocol, "body_seconds", 1.0)


class _no_signals:  # noqa: N801 - in the place of a function
    """Signals are for the main thread."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def said(port: int, *pieces: bytes) -> bytes:
    """All that the server answers until it closes the connection, or says nothing for a while."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:  # it has been refused before its end
                break
        answer = b""
        try:
            while chunk := connection.recv(65_536):
                answer += chunk
        except OSError:
            pass
        return answer


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /echo HTTP/1.1\r\n" + HOST + b"".join(one + b"\r\n" for one in headers) + b"\r\n" + body


SMUGGLED = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
AMBIGUOUS = {
    "a length and chunks": post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "chunks and a length": post(CHUNKED, b"Content-Length: 100", body=b"0\r\n\r\n" + SMUGGLED),
    "two lengths": post(b"Content-Length: 0", b"Content-Length: 50", body=SMUGGLED),
    "two lengths in one": post(b"Content-Length: 0, 50", body=SMUGGLED),
    "a signed length": post(b"Content-Length: +0", body=SMUGGLED),
    "a hexadecimal length": post(b"Content-Length: 0x0", body=SMUGGLED),
    "a length with a blank before its colon": post(b"Content-Length : 0", body=SMUGGLED),
    "chunks that are not last": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + SMUGGLED),
    "chunks twice": post(CHUNKED, CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "chunks with a tab": post(b"Transfer-Encoding:\x0bchunked", body=b"0\r\n\r\n" + SMUGGLED),
    "chunks on a folded line": post(b"X: a\r\n Transfer-Encoding: chunked", b"Content-Length: 0", body=SMUGGLED),
    "a folded length": post(b"Content-Length:\r\n 50", body=SMUGGLED),
    "a bare line feed": b"POST /echo HTTP/1.1\n" + HOST + b"Content-Length: 0\n\n" + SMUGGLED,
    "a bare line feed in a header": post(b"X: a\nContent-Length: 50", b"Content-Length: 0", body=SMUGGLED),
    "a bare carriage return": post(b"X: a\rContent-Length: 50", b"Content-Length: 0", body=SMUGGLED),
    "a null byte": post(b"X: \x00a", b"Content-Length: 0", body=SMUGGLED),
    "a bad chunk size": post(CHUNKED, body=b"0x0\r\n\r\n" + SMUGGLED),
    "a signed chunk size": post(CHUNKED, body=b"-1\r\n\r\n" + SMUGGLED),
    "a chunk size that overflows": post(CHUNKED, body=b"1" + b"0" * 16 + b"\r\n\r\n" + SMUGGLED),
    "a chunk that is longer than it says": post(CHUNKED, body=b"1\r\naa\r\n0\r\n\r\n" + SMUGGLED),
    "a bare line feed after a chunk size": post(CHUNKED, body=b"0\n\n" + SMUGGLED),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_two_servers_could_read_differently_is_refused(port: int, name: str) -> None:
    answer = said(port, AMBIGUOUS[name])
    statuses = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert statuses, answer
    assert b"/smuggled" not in answer
    assert set(statuses) <= {b"400", b"501"}, answer


def test_sound_requests_pass_one_after_the_other_and_at_once(port: int) -> None:
    first = post(b"Content-Length: 3", b"Content-Type: text/plain", body=b"one")
    second = post(CHUNKED, b"Content-Type: text/plain", body=b"3\r\ntwo\r\n0\r\n\r\n")
    last = post(b"Content-Length: 5", b"Connection: close", b"Content-Type: text/plain", body=b"three")
    whole = first + second + last
    for pieces in ((whole,), (first, second, last), tuple(whole[n : n + 7] for n in range(0, len(whole), 7))):
        answer = said(port, *pieces)
        assert answer.count(b"HTTP/1.1 200 OK") == 3
        places = [answer.index(b'"body":"' + word) for word in (b"one", b"two", b"three")]
        assert places == sorted(places)


@pytest.mark.parametrize(
    "head",
    [
        [b"X: " + b"a" * (MAX_HEAD_BYTES + 1)],
        [b"X-%d: " % number + b"a" * 1000 for number in range(80)],
        [b"X-%d: a" % number for number in range(MAX_HEADERS + 1)],
        [b"X: a"] * 100_000,
    ],
)
def test_a_head_that_is_too_large_is_refused(port: int, head: list[bytes]) -> None:
    assert said(port, post(*head)).startswith(b"HTTP/1.1 431 ")


def test_an_address_that_is_too_long_is_refused(port: int) -> None:
    answer = said(port, b"GET /" + b"a" * (MAX_HEAD_BYTES + 1) + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_a_header_without_end_is_refused_while_it_comes(port: int) -> None:
    """It is never whole, so that nothing of it reaches the parser's callbacks."""
    answer = said(port, b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: ", *[b"a" * 10_000] * 20)
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_an_ordinary_large_head_passes(port: int) -> None:
    fields = [b"X-%d: " % number + b"a" * 400 for number in range(MAX_HEADERS - 5)]
    answer = said(port, post(*fields, b"Content-Length: 0", b"Content-Type: text/plain", b"Connection: close"))
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: a",
        post(b"Content-Length: 100000", b"Content-Type: text/plain", body=b"a"),
        post(CHUNKED, b"Content-Type: text/plain", body=b"5\r\naa"),
    ],
)
def test_who_says_too_little_is_let_go(port: int, begin: bytes) -> None:
    """The server ends it: nothing more is sent, and its own end is waited for."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(begin)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("impatient")
def test_a_byte_now_and_then_keeps_nothing_open(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: ")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"a")
                except OSError:
                    return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        try:
            answer = connection.recv(65_536)
        except ConnectionResetError:  # it was closed while a byte was under way
            answer = b"HTTP/1.1 408 "
        stop.set()
        thread.join(60)
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("impatient")  # a connection ends once what was refused has not come whole
@pytest.mark.parametrize("coding", [b"gzip", b"deflate, gzip", b"br", b"zstd"])
@pytest.mark.parametrize("path", [b"/echo", b"/v1/files"])
def test_nothing_is_unpacked(port: int, home: Context, coding: bytes, path: bytes) -> None:
    from luthier.platform.auth.service import create_key

    key = create_key(home, "k", scopes=("admin",))[1].encode()
    headers = [
        b"Content-Encoding: " + coding,
        b"Content-Length: 3",
        b"Connection: close",
        b"Authorization: Bearer " + key,
    ]
    answer = said(port, post(*headers, body=b"abc").replace(b"/echo", path))
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert b"unsupported_content_encoding" in answer


@pytest.mark.usefixtures("impatient")
def test_half_a_head_behind_a_request_does_not_break_its_answer(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\nGET /slow HTTP/1.1\r\nX: a")
        threading.Timer(1.5, RELEASES[port].set).start()  # after the time that a head has
        answer = connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        while chunk := connection.recv(65_536):
            answer += chunk
        assert b"whole" in answer
        assert answer.rpartition(b"HTTP/1.1 ")[2].startswith(b"408 "), "the half is refused once that is done"
