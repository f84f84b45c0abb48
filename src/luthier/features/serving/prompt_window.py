"""The prompts of one request, a few of them at a time: a request of thousands takes no more slots than one of dozens.

The next prompt is sent as soon as one has ended, so that the engine always has a full batch of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from luthier.core.errors import LuthierError
from luthier.core.stream import Ended, Failed, Piece, StreamEvent, TextRequest
from luthier.features.serving.open_request import OnEvent

PROMPTS_AT_ONCE: Final = 32
"""Prompts of one request that are running or waiting."""

Cancel = Callable[[], None]


class Send(Protocol):
    """Sends a prompt to an engine; returns what cancels it. `had_slot`: in place of one that has ended."""

    def __call__(self, request: TextRequest, hear: OnEvent, /, *, had_slot: bool) -> Cancel: ...


class PromptWindow:
    """Sends prompts in order. Calling it cancels all of them. Thread-safe.

    Args:
        requests: The prompts. Choices are numbered across all of them.
        send: Sends one.
        hear: Called with every event.
    """

    def __init__(self, requests: Sequence[TextRequest], send: Send, hear: OnEvent) -> None:
        self._requests, self._send, self._hear, self._at_once = requests, send, hear, PROMPTS_AT_ONCE
        self._lock = threading.Lock()
        self._cancels: dict[int, Cancel] = {}
        self._num_open = [one.num_choices for one in requests]
        firsts = [0]
        for one in requests:
            firsts.append(firsts[-1] + one.num_choices)
        self._firsts = firsts
        self._next = self._num_running = 0
        self._is_stopped = self._is_filling = False

    def begin(self) -> None:
        """Send the first ones.

        Raises:
            LuthierError: One cannot be queued; none continues then, since they are one request of the client.
        """
        try:
            self._fill()
        except LuthierError:
            self()
            raise

    def __call__(self) -> None:
        """Cancel all that have not ended, and send no more."""
        with self._lock:
            self._is_stopped = True
            cancels, self._cancels = list(self._cancels.values()), {}
        # Outside of the lock: it waits for an event that is being heard, which takes the lock.
        for cancel in cancels:
            cancel()

    def _fill(self) -> None:
        """Send the next prompts until enough of them are running or waiting, or none is to be sent any more."""
        with self._lock:
            if self._is_filling:  # whoever sends looks again after each prompt
                return
            self._is_filling = True
        try:
            while (number := self._taken()) is not None:
                hear = partial(self._on_event, number)
                self._keep(number, self._send(self._requests[number], hear, had_slot=number >= self._at_once))
        except BaseException:
            with self._lock:
                self._is_filling, self._is_stopped = False, True
            raise

    def _taken(self) -> int | None:
        """The number of the prompt to be sent next; None ends the sending."""
        with self._lock:
            if self._is_stopped or self._num_running >= self._at_once or self._next >= len(self._requests):
                self._is_filling = False
                return None
            self._next += 1
            self._num_running += 1
            return self._next - 1

    def _keep(self, number: int, cancel: Cancel) -> None:
        with self._lock:
            is_stopped = self._is_stopped
            if not is_stopped and self._num_open[number]:
                self._cancels[number] = cancel
        if is_stopped:  # cancelled while it was sent
            cancel()

    def _on_event(self, number: int, event: StreamEvent) -> None:
        first = self._firsts[number]
        if first and isinstance(event, Piece | Ended):
            event = event.model_copy(update={"choice": event.choice + first})
        self._hear(event)
        if not isinstance(event, Ended | Failed):
            return
        with self._lock:
            self._num_open[number] = 0 if isinstance(event, Failed) else self._num_open[number] - 1
            has_ended = not self._num_open[number]
            if has_ended:
                self._cancels.pop(number, None)
                self._num_running -= 1
            # One that failed ends the request as a whole.
            self._is_stopped = self._is_stopped or isinstance(event, Failed)
        if has_ended:
            try:
                self._fill()
            except LuthierError as error:
                self._hear(Failed.of(error))
