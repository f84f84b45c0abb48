"""Protection of the pages: requests of other sites are refused (CSRF), and a content security policy.

Browsers say where a request comes from (Fetch Metadata's `Sec-Fetch-Site`; `Origin` where that is missing), and no page
can forge it. The API needs none of this: its keys are sent by programs, never by a browser on its own. The policy
allows nothing but our own files, and no code or style written into a page.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.core.errors import RequestError
from luthier.core.json_limits import has_nul
from luthier.platform.ui.errors import error_page, look_up_session, status_of

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
            request = Request(scope)
            await look_up_session(request)
            await error_page(request, 403, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class NulCheck:
    """Refuses (422) pages whose address has a NUL character in its query."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and has_nul(scope["query_string"]):
            error = RequestError(
                "the address has a NUL character (%00) in its query",
                expected="text in filters and searches",
                do="remove the character",
            )
            request = Request(scope)
            await look_up_session(request)
            await error_page(request, status_of(error), error)(scope, receive, send)
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


PLUG_INS: Final = "/plug-ins/"
"""The pages of plug-ins are below this address."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Policy:
    """Sets the policy on every answer; only our own pages may have another one, such as a report with its style in it.

    The rest of the headers is set around both the API and the pages.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"].startswith(PLUG_INS):
                    headers["content-security-policy"] = POLICY
                headers.setdefault("content-security-policy", POLICY)
            await send(message)

        await self._app(scope, receive, send_with_policy if scope["type"] == "http" else send)
