"""Against DNS rebinding: a page in a browser may not reach a server on loopback by a name of its own.

Such a page's name is made to point at 127.0.0.1 after it was loaded; its requests then bear that name as their Host. A
connection that came in over loopback is therefore answered for names of this machine alone, and for those that the
settings allow. Where names are set, all connections are held to them.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.platform.http.errors import ApiError, error_response

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
