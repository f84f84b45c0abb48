"""What is noted of every request: one line in the log, one count in the metrics."""

from __future__ import annotations

import logging
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.platform.home.logs import FACTS
from luthier.platform.http.metrics import Metrics

log = logging.getLogger("luthier.requests")

_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: in the log only where the answer is not good."""
_MOST_PATH_CHARACTERS: Final = 300
_GONE: Final = 499
"""The client went away before it had an answer."""


class Observe:
    """The outermost middleware, so that what the others answer is noted, too.

    The path is logged without its query, and the key by its id: neither holds a secret.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on a request and note how it was answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answer = time.perf_counter(), _Answer()

        async def noted(message: Message) -> None:
            answer.note(message)
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, noted)
        except Exception:
            # An exception after the answer has begun keeps the status that the client has seen.
            answer.status = answer.status or 500
            raise
        finally:
            self._metrics.in_flight.dec()
            self._note(scope, answer, time.perf_counter() - began)

    def _note(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        status, method = answer.status or _GONE, str(scope["method"])
        # The declared route, with `{id}` in place of ids: the labels of metrics stay few.
        route = str(getattr(scope.get("route"), "path", "unmatched"))
        self._metrics.count(method, route, status, seconds)
        if route in _QUIET and status < 400:
            return
        caller = scope.get("state", {}).get("caller")
        path, milliseconds = str(scope["path"])[:_MOST_PATH_CHARACTERS], round(seconds * 1000, 1)
        facts = {
            "request_id": answer.request_id, "key_id": getattr(caller, "key_id", None), "method": method,
            "path": path, "route": route, "status": status, "milliseconds": milliseconds,
        }  # fmt: skip
        words = f"{method} {path} {status} {milliseconds:g} ms {facts['key_id'] or '-'} {answer.request_id or '-'}"
        log.info("%s", words, extra={FACTS: facts})


class _Answer:
    def __init__(self) -> None:
        self.status: int | None = None
        self.request_id: str | None = None

    def note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            found = [value for name, value in message["headers"] if name.lower() == b"x-request-id"]
            self.request_id = found[0].decode("latin-1") if found else None
