"""Requests that are under way at an engine process: who hears their events, and when the last one has come.

A request to a model with two engines may be answered by the other one, as long as nothing was written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.pooling import PoolingRequest
from luthier.core.stream import Ended, Failed, Pooled, Started, StreamEvent, TextRequest
from luthier.features.serving.engine_balance import EngineBalance, EnginePick

OnEvent = Callable[[StreamEvent], None]


class OpenRequest:
    """A running request, and the number of its unfinished answers.

    Args:
        request: The prompt, or the texts.
        hear: Called with each event.
    """

    def __init__(self, request: TextRequest | PoolingRequest, hear: OnEvent) -> None:
        self._num_open = num_choices_of(request)
        self._hear: OnEvent | None = hear
        # Reentrant: the callback may cancel. Held during the callback, so that no event follows once `silence` returns.
        self._lock = threading.RLock()

    def ends_with(self, event: StreamEvent) -> bool:
        """Count an event; whether it is the last one. Call it once for each, under one lock."""
        # A failure or a pooling result ends the whole request, a text ends with its last choice.
        self._num_open -= isinstance(event, Ended)
        return self._num_open == 0 or isinstance(event, Failed | Pooled)

    def tell(self, event: StreamEvent) -> None:
        """Pass on an event, unless cancelled. Call it without a lock that cancelling takes."""
        with self._lock:
            if self._hear is not None:
                self._hear(event)

    def silence(self) -> None:
        """Suppress all further events."""
        with self._lock:
            self._hear = None


def num_choices_of(request: TextRequest | PoolingRequest) -> int:
    """How many answers a request has."""
    return request.num_choices if isinstance(request, TextRequest) else 1


def document_of(request: TextRequest | PoolingRequest) -> dict[str, Any]:
    """A request as the engine process reads it."""
    return {"request" if isinstance(request, TextRequest) else "pool": request.model_dump(mode="json")}


def request_of(document: dict[str, Any]) -> TextRequest | PoolingRequest:
    """The request of such a document.

    Raises:
        ValidationError: A field is missing, unknown or of the wrong type.
    """
    if "pool" in document:
        return PoolingRequest.model_validate(document["pool"])
    return TextRequest.model_validate(document["request"])


Send = Callable[[EnginePick, OnEvent], Callable[[], None]]
"""Sends the request to the engine of a pick; returns what cancels it. Raises BusyError where no slot is free,
WorkError where the engine process has ended."""


class PickedRequest:
    """One prompt, which may move once: where its engine fails, and where the load asks for the other one.

    `Started` is passed on with the first text, once the engine of the answer is settled. Calling the request cancels
    it. Thread-safe.

    Args:
        pick: The engine.
        send: Sends it to an engine.
        hear: Called with each event, as `InferenceClient.ask` does.
        balance: Where engines are picked.
        moved: Called with the other engine before its first event, where it answers instead.
        settled: Called once the request cannot move any more.

    Attributes:
        pick: The engine that it was last sent to.
    """

    def __init__(
        self,
        pick: EnginePick,
        send: Send,
        hear: OnEvent,
        balance: EngineBalance,
        *,
        moved: Callable[[EnginePick], None],
        settled: Callable[[PickedRequest], None],
    ) -> None:
        self.pick = pick
        self._send, self._hear, self._balance, self._moved, self._settled = send, hear, balance, moved, settled
        self._lock = threading.Lock()
        self._sent = 0  # how often; events of an earlier engine are ignored
        self._may_move = pick.other is not None
        self._has_begun = self._is_cancelled = False
        self._held: Started | None = None
        self._cancel: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Send it.

        Raises:
            BusyError: The engine takes no more requests, and the request has not moved to another one meanwhile.
            WorkError: The engine has failed, and the request has not moved to another one meanwhile.
        """
        try:
            cancel = self._send(self.pick, partial(self._on_event, 0))
        except BaseException:
            with self._lock:
                has_moved, self._may_move = self._sent > 0, False
            if has_moved:  # meanwhile: the other engine answers it, or has said why it does not
                return
            raise
        self._keep(0, cancel)

    def __call__(self) -> None:
        """Cancel it, wherever it is."""
        with self._lock:
            self._is_cancelled, cancel = True, self._cancel
        self._settled(self)
        # Outside of the lock: it waits for an event that is being heard, which takes the lock.
        cancel()

    def move(self, pick: EnginePick) -> None:
        """Send it to another engine; nothing where it has begun, has moved before, or was cancelled."""
        with self._lock:
            if not self._may_move or self._has_begun or self._is_cancelled:
                return
            self._may_move, self._held = False, None
            self._sent += 1
            self.pick, number, cancel = pick, self._sent, self._cancel
        self._settled(self)
        self._balance.note_moved(pick)
        cancel()  # first, since it gives its slot back
        try:
            self._moved(pick)
            self._keep(number, self._send(pick, partial(self._on_event, number)))
        except LuthierError as error:
            self._hear(Failed.of(error))

    def _keep(self, number: int, cancel: Callable[[], None]) -> None:
        with self._lock:
            # One that has moved while it was being sent is dropped by the engine before.
            is_late = self._is_cancelled or number != self._sent
            self._cancel = self._cancel if number != self._sent else cancel
        if is_late:
            cancel()

    def _on_event(self, number: int, event: StreamEvent) -> None:
        """Events of one engine, from one thread at a time."""
        fails = isinstance(event, Failed) and event.is_of_engine
        with self._lock:
            if number != self._sent:
                return
            if isinstance(event, Started) and self._may_move:
                self._held = event
                return
            may_move = fails and self._may_move and not self._has_begun
        if may_move and (other := self._balance.after_failure(self.pick)) is not None:
            self.move(other)
            return
        with self._lock:
            # It may have been moved since.
            if number != self._sent:
                return
            self._has_begun, held, self._held = True, self._held, None
        self._settled(self)
        if isinstance(event, Ended):
            self._balance.note_answer(self.pick)
        if held is not None:
            self._hear(held)
        self._hear(event)
