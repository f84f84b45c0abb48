"""No key, no answer: under the addresses of the API a key is looked at before anything else of a request is.

So nobody without one can send a body to be read, and a route that forgets to ask for a scope is still not open to all.
What a key may do the routes themselves ask for (`api.authentication`).
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.core.errors import LuthierError
from luthier.platform.http.authentication import let_in
from luthier.platform.http.errors import ApiError, as_api_error, error_response

GUARDED: Final = ("/v1/", "/api/v1/")
"""What the addresses begin with that need a key."""


class KeyFirst:
    """Refuses (401, 429) requests to the API without a key that lets somebody in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        # `let_in` reads headers alone: the body is not touched before the key is known.
        if scope["type"] == "http" and scope["path"].startswith(GUARDED):
            try:
                await let_in(Request(scope))
            except (ApiError, LuthierError) as error:
                refusal = error if isinstance(error, ApiError) else as_api_error(error)
                await error_response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)
