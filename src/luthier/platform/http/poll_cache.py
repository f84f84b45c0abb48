"""Responses to polls: cached until the database changes, and read and written at the least cost.

Clients poll the same job again and again, and mostly nothing has happened: then the response is the one before. Each
request first takes a marker of the database (`Watch`), before anything is read for its answer. A response is kept under
the marker that it was made at, and given to others only while the marker is still that one: a request after a commit,
of any process, gets a response that was read after it. See docs/decisions/0012.

FastAPI would validate a response again that was validated when it was made, and hand both the reading and the
validation to other threads: next to a training each such switch costs more than the work itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.core.access import Caller
from luthier.platform.auth.authenticator import Authenticator
from luthier.platform.db.backend import Watch
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import wrong_key
from luthier.platform.http.errors import error_response

_POLLED: Final = re.compile(r"/v1/fine_tuning/jobs(/[^/]+(/events|/checkpoints)?)?")
"""Answers here are made of the database alone: not of the time, nor of files; of the caller, project and scopes."""
_MOST_ANSWERS: Final = 512
_MOST_BYTES: Final = 64 << 10
"""Of one answer; a longer one is made again each time."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the routes have answered: without what the layers above add, which is of each request."""

    start: Message
    body: bytes
    route: Any


class PollCache:
    """The innermost layer: key, host and limits were looked at before. A key that was revoked meanwhile is refused."""

    def __init__(self, app: ASGIApp, context: Context, authenticator: Authenticator) -> None:
        self._app, self._context, self._authenticator = app, context, authenticator
        self._watch: Watch | None = None
        self._turn = asyncio.Lock()
        self._mark: Hashable = None
        self._kept: dict[Hashable, asyncio.Future[_Answer | None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from memory where that is right, or else hand the request on."""
        caller: Caller | None = scope.get("state", {}).get("caller")
        is_poll = scope["type"] == "http" and scope["method"] == "GET" and caller is not None
        if not is_poll or caller is None or caller.key_id is None or not _POLLED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        seen = await self._look(caller.key_id)
        if seen is None:
            await self._app(scope, receive, send)
            return
        mark, is_revoked = seen
        if is_revoked:
            self._authenticator.forget_all()
            await error_response(wrong_key())(scope, receive, send)
            return
        # A new dict, not `clear()`: running requests keep theirs and cannot put old answers into the new one.
        if mark != self._mark or len(self._kept) >= _MOST_ANSWERS:
            self._mark, self._kept = mark, {}
        # All that an answer depends on; the key itself is not among it, so keys of one project share answers.
        asked = (caller.project_id, caller.scopes, scope["path"], scope["query_string"])
        made = self._kept.get(asked)
        if made is None:
            await self._make(asked, scope, receive, send)
        # shield: a client that goes away must not cancel the future for the others who wait.
        elif (answer := await asyncio.shield(made)) is not None:
            # The router did not run, but `Observe` labels its metrics by the route.
            scope["route"] = answer.route
            await send({**answer.start, "headers": list(answer.start["headers"])})
            await send({"type": "http.response.body", "body": answer.body})
        else:
            await self._app(scope, receive, send)

    async def _look(self, key_id: str) -> tuple[Hashable, bool] | None:
        if self._watch is None:
            self._watch = await run_in_threadpool(lambda: self._context.database.watch())
        if self._context.database.is_quick:
            return self._watch.look(key_id)
        # A watch is one connection, for one thread at a time.
        async with self._turn:
            return await run_in_threadpool(self._watch.look, key_id)

    async def _make(self, asked: Hashable, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the routes answer, and cache that. Concurrent requests for the same wait for this one."""
        kept, made = self._kept, asyncio.get_running_loop().create_future()
        kept[asked] = made
        start: Message | None = None
        body, answer = b"", None

        async def send_noted(message: Message) -> None:
            nonlocal start, body, answer
            if message["type"] == "http.response.start":
                start = {**message, "headers": list(message["headers"])}  # those above add theirs to the message's own
            elif start is not None and start["status"] == 200:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    answer = _Answer(start, body, scope.get("route"))
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            if answer is None or len(answer.body) > _MOST_BYTES:
                kept.pop(asked, None)
            # In any case, also after an exception: those who wait would wait forever. None sends them to the routes.
            made.set_result(answer)


async def polled(context: Context, read: Callable[[], BaseModel], *, is_short: bool = True) -> Response:
    """The answer that `read` makes of one state of the database, as JSON.

    Args:
        context: The home.
        read: Reads the database and makes the answer.
        is_short: Whether it reads a few rows by an index. These are read on the event loop where the database is a
            file.
    """

    def answer() -> Response:
        with context.database.snapshot():
            return Response(read().model_dump_json(), media_type="application/json")

    if is_short and context.database.is_quick:
        return answer()
    return await run_in_threadpool(answer)
