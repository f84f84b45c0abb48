"""A request that is under way at an engine process: who hears its events, and when the last one has come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from luthier.core.stream import Ended, Failed, Pooled, PoolingRequest, StreamEvent, TextRequest

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
