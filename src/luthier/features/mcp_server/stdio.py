"""The Model Context Protocol over stdin and stdout: `luthier mcp`, which a client starts as its own process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anyio import run, to_thread

from luthier.core.access import Caller
from luthier.core.errors import BusyError, NotAllowedError
from luthier.features.mcp_server.service import Toolbox
from luthier.platform.auth.authenticator import Authenticator
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.mcp_server.protocol import RequestContext

KEY_VARIABLE: Final = "LUTHIER_API_KEY"


class LocalIdentity:
    """A person at this machine, with all scopes of one project."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def __call__(self, _: RequestContext) -> Caller:
        """The caller."""
        return self._caller


class KeyIdentity:
    """The owner of a key of the home. It is looked up for each request, so that a revoked key ends, and counted."""

    def __init__(self, context: Context, key: str) -> None:
        self._authenticator, self._key = Authenticator(context), key

    async def __call__(self, _: RequestContext) -> Caller:
        """The caller.

        Raises:
            NotAllowedError: The key is unknown, expired or revoked.
            BusyError: The key has made all requests of its minute.
        """
        return await to_thread.run_sync(self.look_up)

    def look_up(self) -> Caller:
        """The caller; blocks. Raises as a call does."""
        given = self._authenticator.recall(self._key) or self._authenticator.look_up(self._key, "stdio")
        if given.caller is None:
            raise NotAllowedError(
                f"the key in {KEY_VARIABLE} is unknown, expired or revoked",
                expected="a key of this home",
                do="make one with `luthier keys create`, or leave the variable out to work as the user of this machine",
            )
        taken = self._authenticator.count(given)
        if taken is not None and not taken.is_allowed:
            raise BusyError(
                f"the key has made its {taken.limit:,} requests of this minute",
                expected="fewer requests a minute, or a key with a larger limit",
                do=f"wait {taken.wait_seconds:.3g} s",
                retry_seconds=taken.wait_seconds,
            )
        return given.caller


def serve_stdio(context: Context, identity: LocalIdentity | KeyIdentity, *, is_read_only: bool) -> None:
    """Serve until the client has closed stdin and its requests are answered, or nobody reads the answers."""
    from mcp.server.stdio import stdio_server

    from luthier.features.mcp_server.protocol import make_server
    from luthier.features.mcp_server.unanswered import Incoming, Outgoing, Unanswered

    server = make_server(context, Toolbox(is_read_only, context.settings.max_request_bytes), identity)

    async def serve() -> None:
        unanswered = Unanswered()
        async with stdio_server() as (incoming, outgoing):
            options = server.create_initialization_options()
            await server.run(Incoming(incoming, unanswered), Outgoing(outgoing, unanswered), options)

    try:
        run(serve)
    except* BrokenPipeError:
        pass  # the client is gone, and with it the reader of the answers
