"""JSON that nests too deep, holds too many values or half characters is refused before anything reads it.

One place for the whole API and the pages: what comes behind it may take apart, store and send what it is given. The
body is read here, behind the limit on its size, and given on as it came.
"""

from __future__ import annotations

import json
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.core.json_limits import MAX_REQUEST_VALUES, JsonFault, fault_of_text
from luthier.platform.http.errors import ApiError, error_response, http_error
from luthier.platform.http.middleware.body import is_upload

_METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# What is smaller is looked through on the event loop: handing it to a thread would take longer.
_SMALL_BYTES: Final = 65_536


class JsonBody:
    """Refuses (400) requests whose JSON goes beyond `core.json_limits`, and names the field."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or not _is_read_here(scope):
            await self._app(scope, receive, send)
            return
        try:
            body = await _whole(receive)
        except HTTPException as error:  # the limit on its size
            await error_response(http_error(error, scope["method"], scope["path"]))(scope, receive, send)
            return
        if body is None:  # the client has gone
            return
        refused = await run_in_threadpool(_refusal, body) if len(body) > _SMALL_BYTES else _refusal(body)
        if refused is not None:
            await error_response(refused)(scope, receive, send)
            return
        await self._app(scope, _given_on(body, receive), send)


def _is_read_here(scope: Scope) -> bool:
    """Not what brings a file, whatever it says of itself: that is never held in memory."""
    return scope["method"] in _METHODS and not is_upload(scope) and _is_json(Headers(scope=scope))


def _is_json(headers: Headers) -> bool:
    """Whether it says so, or does not say what it is: then it is read as JSON."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return not kind or kind == "application/json" or kind.endswith("+json")


async def _whole(receive: Receive) -> bytes | None:
    chunks = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


def _given_on(body: bytes, receive: Receive) -> Receive:
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        # After the body the real `receive`: handlers that stream learn from it that the client has gone.
        return given.pop() if given else await receive()

    return receive_again


def _refusal(body: bytes) -> ApiError | None:
    if not body:
        return None
    try:
        # json.loads would take UTF-16 and UTF-32, which the checks below do not see through.
        if not json.detect_encoding(body).startswith("utf-8"):
            raise ValueError("another encoding")
        # Halves of surrogate pairs may come as bytes, too, where they are found below.
        text = body.decode("utf-8", "surrogatepass")
    except ValueError:
        return ApiError(400, "Invalid request: the body is not UTF-8; expected: JSON in UTF-8", code="invalid_json")
    fault = fault_of_text(text, max_values=MAX_REQUEST_VALUES)
    return None if fault is None else refusal(fault)


def refusal(fault: JsonFault, within: str = "") -> ApiError:
    """The error that names the field. within: the field that the document came in, where it is not the request."""
    place = ".".join(part for part in (within, fault.place) if part)
    where = f" at {place!r}" if place else ""
    message = f"Invalid request: {fault.came}{where}; expected: {fault.expected}; what to do: write it out flat"
    # "write it out flat" helps against depth and size, not here.
    if "surrogate" in fault.came:
        message = f"Invalid request: {fault.came}{where}; expected: {fault.expected}; what to do: leave it out"
    return ApiError(400, message, param=place or None, code="invalid_value")
