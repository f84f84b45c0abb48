"""The Model Context Protocol over stdin and stdout: `luthier mcp`, which a client starts as its own process.

The server of the official library cancels what it works on as soon as the client closes its side. Over stdin a client
may write its requests, close, and read: these requests are answered, so the end of its stream is passed on only when
every request has its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextvars import Context as Variables
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from anyio import EndOfStream, Event, run, to_thread
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from luthier.core.access import Caller
from luthier.core.errors import BusyError, NotAllowedError
from luthier.features.mcp_server.service import Toolbox
from luthier.platform.auth.authenticator import Authenticator
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.mcp_server.protocol import RequestContext

KEY_VARIABLE: Final = "LUTHIER_API_KEY"

Received = SessionMessage | Exception


class Unanswered:
    """The requests of a client that have no answer yet, by their ids."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._none_is_open = Event()
        self._none_is_open.set()

    def heard(self, item: Received) -> None:
        """A message of the client. What it cancels itself gets no answer."""
        message = item.message if isinstance(item, SessionMessage) else None
        if isinstance(message, JSONRPCRequest):
            self._open[str(message.id)] += 1
            self._none_is_open = Event()
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self._settle(_cancelled_id(message.params))

    def answered(self, item: SessionMessage) -> None:
        """A message to the client."""
        if isinstance(item.message, JSONRPCResponse | JSONRPCError):
            self._settle(item.message.id)

    def _settle(self, request_id: str | int | None) -> None:
        key = str(request_id)
        if key not in self._open:
            return
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]
        if not self._open:
            self._none_is_open.set()

    async def wait(self) -> None:
        """Wait until every request has its answer."""
        await self._none_is_open.wait()


def _cancelled_id(params: Mapping[str, Any] | None) -> str | int | None:
    given = (params or {}).get("requestId")
    return given if isinstance(given, str | int) else None


class _Stream:
    """What both sides have in common: they are closed with the stream of the library that they wrap."""

    def __init__(self, inner: Any, unanswered: Unanswered) -> None:
        self._inner, self._unanswered = inner, unanswered

    async def aclose(self) -> None:
        """Close it."""
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Incoming(_Stream):
    """Messages of the client. The end comes once all its requests are answered."""

    @property
    def last_context(self) -> Variables | None:
        """The variables of the task that has sent the newest message."""
        found: Variables | None = getattr(self._inner, "last_context", None)
        return found

    async def receive(self) -> Received:
        """The next message.

        Raises:
            EndOfStream: The client has closed the stream.
        """
        try:
            item: Received = await self._inner.receive()
        except EndOfStream:
            await self._unanswered.wait()
            raise
        self._unanswered.heard(item)
        return item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None


class Outgoing(_Stream):
    """Messages to the client."""

    async def send(self, item: SessionMessage, /) -> None:
        """Send a message."""
        await self._inner.send(item)
        self._unanswered.answered(item)


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
        """The caller; blocks.

        Raises:
            NotAllowedError: The key is unknown, expired or revoked.
            BusyError: The key has made its requests of this minute.
        """
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
