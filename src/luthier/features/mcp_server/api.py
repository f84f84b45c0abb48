"""POST /mcp: the Model Context Protocol over streamable HTTP, with the keys of the API.

Without sessions: each request is independent, so any process of several may answer it, and a key that was revoked is
refused by the next request. Progress of a call comes as events of its own response. GET and DELETE, which belong to
sessions, are answered with 405.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.core.access import Caller
from luthier.features.mcp_server.service import Toolbox
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import MCP_ADDRESS
from luthier.platform.http.errors import ApiError, error_response

if TYPE_CHECKING:
    from mcp.server import Server
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    from luthier.features.mcp_server.protocol import RequestContext


class McpEndpoint:
    """The app behind the address. The library of the protocol is loaded by the first request."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._max_bytes = context.settings.max_request_bytes
        self._toolbox = Toolbox(is_read_only=False, max_bytes=self._max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whose key was checked before."""
        if (refused := _foreign_origin(Headers(scope=scope))) is not None:
            await error_response(refused)(scope, receive, send)
            return
        manager = self._manager()
        # A manager for each request: without sessions it has nothing to keep, and ends with its request.
        async with manager.run():
            await manager.asgi_app(scope, receive, send)

    @cached_property
    def _server(self) -> Server[Any]:
        from luthier.features.mcp_server.protocol import make_server

        return make_server(self._context, self._toolbox, _caller)

    def _manager(self) -> StreamableHTTPSessionManager:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        return StreamableHTTPSessionManager(self._server, stateless=True, max_request_body_size=self._max_bytes)


async def _caller(ctx: RequestContext) -> Caller:
    # `KeyFirst` has put it there, and has counted the request.
    assert ctx.request is not None, "requests over HTTP have one"
    caller: Caller = ctx.request.state.caller
    return caller


def _foreign_origin(headers: Headers) -> ApiError | None:
    """The refusal of a page of another site: the protocol requires it against DNS rebinding."""
    origin = headers.get("origin")
    if origin is None or urlsplit(origin).netloc == headers.get("host", ""):
        return None
    return ApiError(
        403,
        f"The request comes from a page of {origin[:200]!r}; expected: no Origin header, or that of this server; what "
        "to do: call this address from a program, not from a page of another site",
        code="origin_not_allowed",
    )


def mcp_route(context: Context) -> Route:
    """The route; it is in no OpenAPI document, since its bodies are those of another protocol."""
    endpoint: ASGIApp = McpEndpoint(context)
    return Route(MCP_ADDRESS, endpoint, methods=["POST"], include_in_schema=False)
