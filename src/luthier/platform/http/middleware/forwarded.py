"""Who a client behind a reverse proxy is: what the proxy says of it is believed only where a setting names the proxy.

Anybody who can connect can send `X-Forwarded-For`. Whoever is believed without a reason chooses the address by which
wrong keys and passwords are counted, and takes another one for each guess.
"""

from __future__ import annotations

import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

log = logging.getLogger("luthier.api")


class TrustedProxies:
    """Takes client and scheme from the headers of proxies that are named, and from nobody else's.

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
