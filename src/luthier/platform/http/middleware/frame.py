"""Around every answer: an id, how long it took, the headers that keep browsers from doing harm, and an answer for bugs.

It is the outermost of our layers, so that also the answer to a bug has its id. What a layer below wants to send along
with whatever is answered it puts into `answer_headers(scope)`.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.core.library_errors import library_words_hidden
from luthier.platform.http.errors import bug_response

log = logging.getLogger("luthier.api")

_MOST_CLIENT_ID_CHARACTERS: Final = 512
_API_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
_PAGE_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)


class Frame:
    """The outermost layer. It gives each request `request.state.request_id` and `.client_request_id` (or None)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, has_begun, state = time.perf_counter(), False, scope.setdefault("state", {})
        request_id = state["request_id"] = f"req_{secrets.token_hex(16)}"
        state["client_request_id"] = _client_id(Headers(scope=scope))
        headers = answer_headers(scope)

        async def send_framed(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                shown = MutableHeaders(scope=message)
                shown["x-request-id"] = request_id
                shown["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1000))
                # Read now, not before the app ran: the layers below add to it while they answer.
                for name, value in headers.items():
                    shown[name] = value
                _harden(shown)
            await send(message)

        try:
            # Answers go to other machines: messages of libraries may quote paths and data of this one.
            with library_words_hidden():
                await self._app(scope, receive, send_framed)
        except Exception as error:
            # Once the answer has begun, its end can only be broken off.
            if has_begun:
                raise
            log.exception("unexpected error in %s %s (%s)", scope["method"], scope["path"], request_id, exc_info=error)
            await bug_response()(scope, receive, send_framed)


def answer_headers(scope: Scope) -> dict[str, str]:
    """Headers that go with the answer to this request, whatever it will be; to be written into."""
    headers: dict[str, str] = scope.setdefault("state", {}).setdefault("answer_headers", {})
    return headers


def _harden(headers: MutableHeaders) -> None:
    is_page = headers.get("content-type", "").startswith("text/html")
    # Set whatever a route says; the `setdefault`s below are what a route may choose otherwise.
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    headers.setdefault("x-frame-options", "DENY")
    headers.setdefault("cache-control", "no-store")
    headers.setdefault("content-security-policy", _PAGE_POLICY if is_page else _API_POLICY)


def _client_id(headers: Headers) -> str | None:
    """The client's own name for its request, for the log, where it has one that does no harm there."""
    given = headers.get("x-client-request-id", "")
    is_fit = 0 < len(given) <= _MOST_CLIENT_ID_CHARACTERS and given.isascii() and given.isprintable()
    return given if is_fit else None
