"""One request, awaited from an event loop.

No thread is held during generation, and a client disconnect cancels the request:

    stream = CompletionStream(context, caller, requests)
    try:
        await stream.begin(lambda: route(context, caller, name))
        while not stream.answer.has_ended: await stream.next()
    finally:
        await stream.leave()
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from anyio import to_thread

from luthier.core.access import Caller
from luthier.core.conversation import Message
from luthier.core.records.traffic import answer_of_calls
from luthier.core.stream import Piece, StreamEvent, TextRequest
from luthier.features.serving import service as serving
from luthier.features.serving.models import Routed
from luthier.features.traffic.log import RequestRecord
from luthier.platform.home.context import Context

_CHARGING: set[asyncio.Future[None]] = set()


async def uncancelled(charging: Coroutine[Any, Any, None]) -> None:
    """Run it to the end, even if this task is being cancelled."""
    task = asyncio.ensure_future(charging)
    _CHARGING.add(task)  # the loop itself holds only a weak reference
    task.add_done_callback(_CHARGING.discard)
    await asyncio.shield(task)


def queued(inbox: asyncio.Queue[StreamEvent | None]) -> Callable[[StreamEvent], None]:
    """A listener for events of other threads, which puts them into a queue of the running loop."""
    loop = asyncio.get_running_loop()

    def hear(event: StreamEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has shut down
            loop.call_soon_threadsafe(inbox.put_nowait, event)

    return hear


class CompletionStream:
    """One running request.

    Args:
        context: The home.
        caller: Whose budget and slots are used.
        requests: One for each prompt.
        model: The name that was requested.
        user: The end user, if the request names one.
        engine: The engine that the client asks for; None leaves it to the load.
        hears_pieces: Whether `next` also returns pieces; the answer contains all text in any case.

    Attributes:
        answer: The text so far.
        answering: What answers; known once `begin` has returned, and settled with the first event.
        exchange: Its record in the traffic log, according to the project's policy, once it has ended.
        began_at: When it was sent, by `time.monotonic`.
        first_at: When the first piece arrived, by `time.monotonic`; 0 before that.
        ended_at: When the last choice ended, by `time.monotonic`; 0 before that.
    """

    def __init__(
        self,
        context: Context,
        caller: Caller,
        requests: Sequence[TextRequest],
        *,
        model: str = "",
        user: str = "",
        engine: str | None = None,
        hears_pieces: bool = True,
    ) -> None:
        self._context, self._caller, self._requests, self._hears_pieces = context, caller, requests, hears_pieces
        self._engine = engine
        choices = [serving.Choice() for one in requests for _ in range(one.num_choices)]
        self.answer = serving.Answer(choices, num_prompts=len(requests))
        self.answering = serving.Answering()
        self.exchange = RequestRecord(context, caller, model, user)
        if requests and requests[0].conversation is None:
            self.exchange.operation = "text_completion"
        self.began_at, self.first_at, self.ended_at = self.exchange.began_at, 0.0, 0.0
        self._inbox: asyncio.Queue[StreamEvent | None] = asyncio.Queue()
        self._cancel: Callable[[], None] = lambda: None
        self._is_charged = False
        self._failure: BaseException | None = None

    async def begin(self, route: Callable[[], Routed]) -> None:
        """Send the request.

        Args:
            route: Finds the target. It is called in a thread, since it reads the database.

        Raises:
            QuotaError: The caller's day has no tokens left.
            NotFoundError: No such model.
            BusyError: Too many requests are running or waiting.
            WorkError: The server is shutting down.
        """
        loop = asyncio.get_running_loop()

        def hear(event: StreamEvent) -> None:
            if isinstance(event, Piece) and not event.of_prompt and not self.first_at:
                self.first_at = time.monotonic()
            self.answer.hear(event)
            if not isinstance(event, Piece) and not self.ended_at and self.answer.has_ended:
                self.ended_at = time.monotonic()
            if self._hears_pieces or not isinstance(event, Piece):
                with contextlib.suppress(RuntimeError):  # the loop is closed: the server has shut down
                    loop.call_soon_threadsafe(self._inbox.put_nowait, event)

        replaced = list[serving.Answering]()

        def ask() -> None:
            routed = self.answer.routed = route()
            self._cancel, self.answering = serving.ask(
                self._context, self._caller, routed, self._requests, hear, engine=self._engine, moved=moved
            )
            # An engine may fail while its request is being sent.
            self.answering = replaced[-1] if replaced else self.answering

        def moved(answering: serving.Answering) -> None:
            replaced.append(answering)
            self.answering = answering

        try:
            await to_thread.run_sync(ask)
        except BaseException as error:  # this task may have been cancelled while the thread was running
            self._failure = error
            await self.leave()
            raise

    async def next(self) -> StreamEvent | None:
        """The next event; None once the client has disconnected."""
        return await self._inbox.get()

    async def watch(self, receive: Callable[[], Awaitable[Any]]) -> None:
        """Run concurrently with the ASGI `receive` of the client: makes `next` report a disconnect."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._inbox.put_nowait(None)

    async def charge(self) -> None:
        """Charge the generated tokens once, however this ends."""
        if not self._is_charged:
            self._is_charged = True
            await to_thread.run_sync(self._end)

    async def leave(self) -> None:
        """Stop generation and charge the generated tokens, even if this task is being cancelled."""
        self._cancel()
        await uncancelled(self.charge())

    def _end(self) -> None:
        try:
            serving.charge(self._context, self._caller, self.answer)
        finally:
            self.exchange.end(
                self.answer.routed,
                error=self.answer.error or self._failure,
                is_whole=self.answer.has_ended,
                finish_reason=self.answer.choices[0].reason or "",
                num_prompt_tokens=self.answer.num_prompt_tokens,
                num_new_tokens=self.answer.num_new_tokens,
                first_at=self.first_at,
                ended_at=self.ended_at,
                words=self._words,
            )

    def _words(self) -> tuple[Sequence[Message], str] | None:
        """Request and answer, of several prompts and choices the first; None for token id prompts."""
        request, choice = self._requests[0], self.answer.choices[0]
        if request.conversation is not None:
            messages = request.conversation.messages
        elif request.text is not None:
            messages = (Message(role="user", content=request.text),)
        else:
            return None
        calls = choice.tool_calls()
        return messages, answer_of_calls(calls, choice.text) if calls else choice.text
