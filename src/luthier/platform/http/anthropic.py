"""Anthropic's form of what the API answers: which requests get it, and errors in it.

Requests to `/v1/messages` get it, and requests to `/v1/models` with the header `anthropic-version`, which Anthropic's
clients send with every request. Errors come from many layers (key, size, JSON, route), all in OpenAI's form: one layer
outside of them rewrites the body, so that no layer has to know both.

Source: Anthropic's API reference, "Errors" and "Versioning".
"""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.core.json_limits import json_utf8
from luthier.platform.http.errors import MESSAGES, ApiError

VERSION_HEADER: Final = "anthropic-version"
VERSIONS: Final = ("2023-06-01", "2026-10-21")
"""Both have the form of messages, streams and errors that is answered here; the second one is that of client 2.x."""
_REFUSED_HEADERS: Final = ("anthropic-workspace-id", "anthropic-user-profile-id")
MODELS: Final = "/v1/models"
BETA: Final = "beta"
"""The parameter of the query that `client.beta` of Anthropic's clients sends; what a beta adds is in the body."""
_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def is_anthropic(path: str, headers: Headers) -> bool:
    """Whether a request gets its answer in Anthropic's form."""
    if path == MESSAGES or path.startswith(f"{MESSAGES}/"):
        return True
    return VERSION_HEADER in headers and (path == MODELS or path.startswith(f"{MODELS}/"))


def check_headers(headers: Headers) -> None:
    """Raises ApiError for a version with another form, and for headers that would change the answer."""
    if (version := headers.get(VERSION_HEADER, VERSIONS[0])) not in VERSIONS:
        wanted = " or ".join(VERSIONS)
        message = f"{VERSION_HEADER}: {version[:100]!r}; expected: {wanted}; what to do: send that, or leave it out"
        raise ApiError(400, message, param=VERSION_HEADER, code="invalid_value")
    if unsupported := next((name for name in _REFUSED_HEADERS if name in headers), None):
        message = (
            f"the header {unsupported}; expected: none, since a key of this server belongs to one project; what to do: "
            "leave it out"
        )
        raise ApiError(400, message, param=unsupported, code="invalid_value")


def error_document(
    status: int, message: str, request_id: str, *, param: str | None, code: str | None
) -> dict[str, Any]:
    """An error as Anthropic's clients read it.

    Args:
        status: The HTTP status, which decides the type.
        message: What came, what was expected, and what to do.
        request_id: Of the answer.
        param: The field that is wrong; it is put before a message that does not name it.
        code: The error for programs; in `details`.
    """
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    words = message if param is None or param in message else f"{param}: {message}"
    error: dict[str, Any] = {"type": kind, "message": words}
    if code is not None:
        error["details"] = {"error_code": code}
    return {"type": "error", "error": error, "request_id": request_id}


class AnthropicAnswers:
    """Rewrites errors, and adds the header `request-id`, of requests that get their answer in Anthropic's form."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not is_anthropic(scope["path"], Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        # Shared with the layers below, which write the id of the request into it.
        state = scope.setdefault("state", {})
        start: Message | None = None
        body = b""

        async def send_rewritten(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if request_id := headers.get("x-request-id"):
                    headers["request-id"] = request_id
                if message["status"] < 400 or not headers.get("content-type", "").startswith("application/json"):
                    await send(message)
                    return
                start = message
                return
            if start is None:
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body", False):
                return
            rewritten = _rewritten(start["status"], body, str(state.get("request_id", "")))
            MutableHeaders(scope=start)["content-length"] = str(len(rewritten))
            await send(start)
            await send({"type": "http.response.body", "body": rewritten})

        await self._app(scope, receive, send_rewritten)


def _rewritten(status: int, body: bytes, request_id: str) -> bytes:
    error = json.loads(body).get("error")
    if not isinstance(error, dict):
        return body
    message, param, code = str(error.get("message", "")), error.get("param"), error.get("code")
    return json_utf8(error_document(status, message, request_id, param=param, code=code))
