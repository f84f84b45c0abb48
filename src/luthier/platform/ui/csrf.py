"""Forms of other sites change nothing here: what changes something must come from a page of this very server.

Browsers say where a request comes from (Fetch Metadata's `Sec-Fetch-Site`; `Origin` where that is missing), and no page
can make them lie about it. The API needs none of this: its keys are sent by programs, never by a browser on its own.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.core.errors import RequestError
from luthier.platform.ui.errors import error_page

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class SameOrigin:
    """Refuses (403) requests that would change something and do not come from here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and scope["method"] not in _SAFE and not _is_own(Headers(scope=scope)):
            error = RequestError(
                "this form was not sent from a page of this server",
                expected="a form that was opened here",
                do="open the page again and send it again",
            )
            await error_page(Request(scope), 403, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_own(headers: Headers) -> bool:
    # A header that scripts cannot set. `same-site` is not enough: another port of the same host is another site's page.
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = headers.get("origin")
    # Older browsers. Without either header the request is refused.
    return origin is not None and urlsplit(origin).netloc == headers.get("host", "")
