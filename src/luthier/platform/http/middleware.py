"""ASGI middleware of the API: request ids and security headers, hosts, proxies, body size, and JSON limits.

`frame` is the outermost layer, so that the response to a bug has its id, too. A layer below adds headers to any
response by `answer_headers(scope)`.

Hosts: against DNS rebinding a connection that came in over loopback is answered for names of this machine alone, and
for those that the settings allow. Where names are set, all connections are held to them.

Proxies: anyone can send `X-Forwarded-For`, and a trusted address is the one under which wrong keys and passwords are
counted. So the header is believed only from a proxy that a setting names.

Body: its size is counted while it comes in, and its digest is kept if needed. Routes that take files count for
themselves, and stream to the disk. JSON that nests too deep, holds too many values, half characters or NaN is refused
before anything reads it; the body is read once, behind the size limit, and passed on as it came.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import math
import re
import secrets
import time
from functools import lru_cache
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from luthier.core.errors import library_words_hidden
from luthier.core.json_limits import MAX_REQUEST_VALUES, JsonFault, fault_of_text, has_nul
from luthier.platform.http.errors import ApiError, bug_response, error_response, http_error

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
    """Headers of the response to this request, for any response; to be written into."""
    headers: dict[str, str] = scope.setdefault("state", {}).setdefault("answer_headers", {})
    return headers


def _harden(headers: MutableHeaders) -> None:
    is_page = headers.get("content-type", "").startswith("text/html")
    # Always set; the `setdefault`s below are what a route may choose otherwise.
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


_OWN = frozenset({"localhost", "127.0.0.1", "[::1]"})


class HostCheck:
    """Refuses (421) requests that came by a name that is not ours."""

    def __init__(self, app: ASGIApp, allowed_hosts: str) -> None:
        self._app, self._named = app, frozenset(allowed_hosts.lower().split())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] in ("http", "websocket") and not self._is_allowed(scope):
            came = Headers(scope=scope).get("host", "")
            error = ApiError(
                421,
                f"This server is not called {came[:100]!r}; expected: localhost, 127.0.0.1 or a name that the setting "
                "LUTHIER_ALLOWED_HOSTS holds; what to do: use such a name, or add this one there",
                code="host_not_allowed",
                headers={"x-should-retry": "false"},
            )
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if "*" in self._named:
            return True
        came = Headers(scope=scope).get("host")
        # Without a Host it is no browser.
        if came is None or not (self._named or _is_loopback(scope)):
            return True
        host = _without_port(came.lower())
        return host in _OWN or host in self._named


def _is_loopback(scope: Scope) -> bool:
    """Whether the connection came in at an address that only this machine can reach."""
    server = scope.get("server")
    return server is not None and _is_loopback_address(server[0])


@lru_cache(maxsize=256)
def _is_loopback_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


class TrustedProxies:
    """Takes client and scheme only from the headers of trusted proxies.

    The first request that another proxy forwards is logged.

    Args:
        app: The app behind it.
        addresses: Addresses of the proxies, or networks of them.
    """

    def __init__(self, app: ASGIApp, addresses: list[str]) -> None:
        self._app, self._has_told = app, False
        self._believing = ProxyHeadersMiddleware(app, trusted_hosts=addresses)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as the one of its client."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        peer = scope["client"][0] if scope.get("client") else None
        # The peer of the connection, before any header is looked at.
        if peer in self._believing.trusted_hosts:
            await self._believing(scope, receive, send)  # type: ignore[arg-type]
            return
        # Once for each process: a proxy that is not named would fill the log.
        if not self._has_told and "x-forwarded-for" in Headers(scope=scope):
            self._has_told = True
            log.warning(
                "a request from %s says in X-Forwarded-For that it comes from elsewhere; expected: that of a proxy "
                "named in LUTHIER_TRUSTED_PROXIES; what to do: name the address %s there if it is your reverse proxy; "
                "until then all its clients count as one",
                peer,
                peer,
            )
        await self._app(scope, receive, send)


_TAKES_FILES = re.compile(
    r"/v1/files/?|/v1/uploads/[^/]+/parts/?|/datasets/new|/batches|/review/import|/evaluations/import"
    r"|/evaluations/panels/[^/]+/import"
)


class BodyLimit:
    """Refuses requests with larger bodies than `most_bytes` (413), and compressed ones (415).

    Of a request with an idempotency key it leaves the SHA-256 so far in `scope["state"]["body_digest"]`.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (coding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
            await error_response(_encoded(coding))(scope, receive, send)
            return
        takes_files = is_upload(scope)
        # Refused before a byte is read; a length that is missing or wrong is found by counting below.
        if not takes_files and _declared_length(headers) > self._most_bytes:
            await error_response(self._too_large())(scope, receive, send)
            return
        digest, num_bytes = hashlib.sha256(), 0
        if is_hashed := "idempotency-key" in headers:
            # The object itself: it is complete once the handler has read the body.
            scope.setdefault("state", {})["body_digest"] = digest

        async def receive_counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            if message["type"] == "http.request":
                chunk = message.get("body", b"")
                num_bytes += len(chunk)
                if is_hashed:
                    digest.update(chunk)
                if num_bytes > self._most_bytes and not takes_files:
                    # Raised out of `receive`, so in the code that reads the body; the app's handlers turn it into an
                    # answer.
                    raise HTTPException(413, self._too_large().message)
            return message

        await self._app(scope, receive_counted, send)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"The request is larger than {self._most_bytes:,} bytes; expected: a smaller one; what to do: upload large "
            "things as files, or let the operator raise LUTHIER_MAX_REQUEST_BYTES",
            code="request_too_large",
            headers={"x-should-retry": "false"},
        )


def _encoded(coding: str) -> ApiError:
    """What is small on the wire may be vast unpacked: nothing is unpacked here."""
    return ApiError(
        415,
        f"Content-Encoding: {coding[:100]}; expected: an uncompressed body; what to do: send it without compression",
        code="unsupported_content_encoding",
        headers={"Accept-Encoding": "identity"},
    )


def is_upload(scope: Scope) -> bool:
    """Whether the request brings a file, whose bytes go to the disk as they come."""
    return scope["method"] == "POST" and _TAKES_FILES.fullmatch(scope["path"]) is not None


def _declared_length(headers: Headers) -> int:
    given = headers.get("content-length", "")
    # isdigit alone is true of superscripts, which int refuses; 20 digits are beyond 64 bits.
    return int(given) if given.isascii() and given.isdigit() and len(given) < 20 else 0


class NulCheck:
    """Refuses (400) API requests whose query holds a NUL character; pages answer them with a page.

    Args:
        app: The app behind it.
        below: What the addresses of the API begin with.
    """

    def __init__(self, app: ASGIApp, below: tuple[str, ...]) -> None:
        self._app, self._below = app, below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and scope["path"].startswith(self._below) and has_nul(scope["query_string"]):
            error = ApiError(
                400,
                "The query of the address holds a NUL character (%00); expected: text; what to do: remove it",
                code="invalid_value",
            )
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


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
    """Not an upload of a file, with any content type: that is never held in memory."""
    return scope["method"] in _METHODS and not is_upload(scope) and _is_json(Headers(scope=scope))


def _is_json(headers: Headers) -> bool:
    """Whether it is declared so, or not declared: then it is read as JSON."""
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
    # After the check of the depth: what is parsed here is shallow.
    return _without_number(body, text) if fault is None else refusal(fault)


# What Python reads as a number that is none, or is infinite. Most bodies have nothing that looks so.
_MAY_LACK_NUMBER: Final = re.compile(rb"NaN|Infinity|\d[eE]\+?\d{3}|\d{309}")


class _NoNumberError(Exception):
    """A body has a number that JSON does not have. The argument: as it is written."""


def _without_number(body: bytes, text: str) -> ApiError | None:
    """The refusal of numbers that no answer could repeat: they are not JSON, and Python reads them all the same."""
    if _MAY_LACK_NUMBER.search(body) is None:
        return None
    try:
        json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except _NoNumberError as error:
        came, expected = f"the number {error.args[0]}", "finite numbers, as JSON has them"
        message = f"Invalid request: {came}; expected: {expected}; what to do: send null, or leave it out"
        return ApiError(400, message, code="invalid_json")
    except ValueError:  # the route refuses what is no JSON
        return None
    return None


def _no_number(written: str) -> float:
    raise _NoNumberError(written[:40])


def _finite(written: str) -> float:
    number = float(written)
    return number if math.isfinite(number) else _no_number(written)


def refusal(fault: JsonFault, within: str = "") -> ApiError:
    """The error that names the field.

    Args:
        fault: Where and how the document goes beyond the limits.
        within: The field that the document came in, where it is not the request.
    """
    place = ".".join(part for part in (within, fault.place) if part)
    where = f" at {place!r}" if place else ""
    message = f"Invalid request: {fault.came}{where}; expected: {fault.expected}; what to do: write it out flat"
    # "write it out flat" helps against depth and size, not here.
    if "surrogate" in fault.came:
        message = f"Invalid request: {fault.came}{where}; expected: {fault.expected}; what to do: leave it out"
    return ApiError(400, message, param=place or None, code="invalid_value")
