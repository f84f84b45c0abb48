"""How large a request may be, counted while it comes in, whatever it says of itself; and its digest where it is needed.

Routes that take files count for themselves, and let them stream to the disk.
"""

from __future__ import annotations

import hashlib
import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.platform.http.errors import ApiError, error_response

_TAKES_FILES = re.compile(r"/v1/files/?|/v1/uploads/[^/]+/parts/?|/datasets/new")


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
                    # Raised out of `receive`, hence in whoever reads the body; the app's handlers turn it into an
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
        f"Content-Encoding: {coding[:100]}; expected: a body as it is; what to do: send it without compression",
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
