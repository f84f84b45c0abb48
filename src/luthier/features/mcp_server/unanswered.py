"""The streams of a connection, whose end is passed on only when every request has its answer.

The server of the official library cancels what it works on as soon as the client closes its side. Over stdin a client
may write its requests, close, and read: these requests are answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextvars import Context as Variables
from types import TracebackType
from typing import Any, Self

from anyio import EndOfStream, Event
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

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
        """The next message. Raises EndOfStream at the end."""
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
