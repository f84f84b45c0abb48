"""The HTTP server around an app: bounds on the head of a request, and a graceful shutdown.

At the end it is first not ready, then, a moment later, no longer listening. The protocol bounds what the parser does
not: the size of a request's head, and how slowly a request may come in. Without these one client could fill the memory
with a header that never ends, or hold all file descriptors with connections that send a byte now and then (Slowloris).
"""

from __future__ import annotations

import asyncio
import math
from types import FrameType
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from luthier.platform.home.context import Context
from luthier.platform.http.health import Readiness
from luthier.platform.http.middleware import TrustedProxies

MAX_HEAD_BYTES: Final = 65_536
"""Of the request line and all headers."""
MAX_HEADERS: Final = 128
HEAD_SECONDS: Final = 30.0
"""Within which a head must have come in, from the opening of the connection or its first byte on."""
BODY_SECONDS: Final = 30.0
BODY_BYTES: Final = 1024
"""At least this many bytes of a body must come in within every `BODY_SECONDS`, while the server waits for them."""
_TOO_LARGE: Final = f"The head of the request is too large; expected: {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers"
_TOO_SLOW: Final = "The request arrived too slowly; what to do: send it again"


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses heads that are too large (431), and closes connections whose request comes in too slowly (408)."""

    head_seconds = HEAD_SECONDS
    body_seconds = BODY_SECONDS

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head = self._is_in_body = self._is_too_large = False
        self._num_head_bytes = self._num_header_bytes = self._num_body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, and not forever."""
        super().connection_made(transport)
        self._start_timer(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, as long as the head is not too large."""
        super().data_received(data)
        # The parser reports a header once it is complete: one that never ends is noticed by counting raw bytes alone.
        if self._is_in_head and not self.transport.is_closing():
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._is_too_large = True
                self.send_400_response(_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        """Refuse, with the status that says why."""
        self._stop_timer()
        if self._is_too_large:
            self._refuse(431, _TOO_LARGE)
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._is_in_head, self._num_head_bytes, self._num_header_bytes = True, 0, 0
        self._start_timer(self.head_seconds)

    def on_url(self, url: bytes) -> None:
        """More of the address."""
        super().on_url(url)
        self._check_head(len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One more header."""
        super().on_header(name, value)
        # 4: the colon, the blank and the line break.
        self._num_header_bytes += len(name) + len(value) + 4
        self._check_head(len(self.url) + self._num_header_bytes)

    def on_headers_complete(self) -> None:
        """The head is there; a body may come."""
        super().on_headers_complete()
        self._is_in_head, self._is_in_body, self._num_body_bytes = False, True, 0
        self._start_timer(self.body_seconds)

    def on_body(self, body: bytes) -> None:
        """More of the body."""
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._is_in_body = False
        self._stop_timer()
        super().on_message_complete()

    def _check_head(self, num_bytes: int) -> None:
        """Raise ValueError, which ends the parsing, for a head that is too large."""
        if num_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._is_too_large = True
            raise ValueError(_TOO_LARGE)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """End a connection that says too little; where it is us who do not read, or still answer, wait on."""
        self._timer = None
        if self.transport.is_closing():
            return
        # cycle: uvicorn's object of one request and its answer.
        is_answering = self.cycle is not None and not self.cycle.response_complete
        is_sound = self._num_body_bytes >= BODY_BYTES if self._is_in_body else is_answering
        if is_sound or self.flow.read_paused:
            self._num_body_bytes = 0
            self._start_timer(self.body_seconds)
        # A status was sent already: a second one would be read as part of the body.
        elif is_answering and self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(408, _TOO_SLOW)

    def _refuse(self, status: int, message: str) -> None:
        head = [STATUS_LINE[status], b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"]
        # Written explicitly: uvicorn's `send_400_response` knows no other status.
        head.append(f"content-length: {len(message)}\r\n\r\n{message}".encode("ascii"))
        self.transport.write(b"".join(head))
        self.transport.close()


_STILL_ANSWERS_SECONDS: Final = 1.0
_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than clients keep an idle connection: who closes it must not be the one that a request is just coming to."""


def make_server(app: FastAPI, context: Context, readiness: Readiness) -> uvicorn.Server:
    """The HTTP server of the app; it writes no log lines below warnings.

    Who a client is, is what the connection says; what a proxy says of it is believed of `settings.trusted_proxies`
    alone, never because a connection comes from this machine, from which others may connect, too.
    """
    config = uvicorn.Config(
        TrustedProxies(app, context.settings.trusted_proxies.split()),
        proxy_headers=False,  # uvicorn's own way believes each connection from this machine
        http=BoundedHttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(context.settings.drain_seconds),
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    return _Server(config, readiness)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, readiness: Readiness) -> None:
        super().__init__(config)
        self._readiness = readiness

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """First not ready, then, a moment later, no longer listening; a second signal does not wait."""
        if self._readiness.is_stopping:
            self.force_exit = self.should_exit
            self.should_exit = True
            return
        self._readiness.is_stopping = True
        loop = asyncio.get_running_loop()
        # Called from a signal handler: only this one wakes a loop that is waiting in select.
        loop.call_soon_threadsafe(loop.call_later, _STILL_ANSWERS_SECONDS, self._leave)

    def _leave(self) -> None:
        self.should_exit = True
