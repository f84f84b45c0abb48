"""Requests are made ready (rendered, tokenised, their schema compiled) beside the thread in which a model computes.

Two threads an engine: one for small requests, one for those that may take long. So a prompt of megabytes or a schema
that takes seconds to compile holds up neither the answers that are being written nor the small requests of others; and
keys take turns in both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from luthier.core.errors import LuthierError
from luthier.core.ports import Prepared
from luthier.core.stream import EmbeddingRequest, TextRequest
from luthier.features.serving.request import Ask, defect
from luthier.platform.processes.fair_queue import FairQueue

# A prompt of so many characters is rendered and tokenised in some hundredths of a second.
SMALL_CHARACTERS: Final = 32_768

Prepare = Callable[[TextRequest | EmbeddingRequest], Prepared]
Tell = Callable[[Ask, Prepared | LuthierError], None]


class Preparation:
    """Prepares the requests of one engine.

    Args:
        prepare: Prepares one; called from any thread.
        tell: Called with each request and its result, once.
        name: Of the engine, in the names of the threads.
    """

    def __init__(self, prepare: Prepare, tell: Tell, name: str) -> None:
        self._prepare, self._tell = prepare, tell
        self._changed = threading.Condition()
        self._waiting: dict[bool, FairQueue[Ask]] = {True: FairQueue(), False: FairQueue()}  # by whether it is small
        self._is_closed = False
        for is_small in (True, False):
            title = f"{'small' if is_small else 'large'} requests {name}"
            threading.Thread(target=self._work, args=(is_small,), name=title, daemon=True).start()

    def add(self, ask: Ask) -> None:
        """Have a request made ready."""
        with self._changed:
            self._waiting[is_small(ask.request)].push(ask.owner, ask)
            self._changed.notify_all()

    def cancel(self, key: str) -> None:
        """Nobody waits for it any more; one that is being prepared is reported all the same."""
        with self._changed:
            for queue in self._waiting.values():
                queue.remove(lambda ask: ask.key == key)

    def close(self) -> None:
        """Take up nothing more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _work(self, is_small: bool) -> None:
        queue = self._waiting[is_small]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or len(queue) > 0)
                if self._is_closed:
                    return
                # The first of the heads belongs to the owner whose turn it is.
                ask = queue.pop(queue.heads()[0][0])
            try:
                # Outside the lock: this is the slow part, and `add` must not wait for it.
                made: Prepared | LuthierError = self._prepare(ask.request)
            except LuthierError as error:
                made = error
            except Exception as error:  # noqa: BLE001 - the other requests go on
                made = defect(error)
            self._tell(ask, made)


def is_small(request: TextRequest | EmbeddingRequest) -> bool:
    """Whether a request is quickly made ready: little text, and no form that has to be compiled first."""
    if isinstance(request, EmbeddingRequest):
        return sum(map(len, request.inputs)) <= SMALL_CHARACTERS
    # A forced tool call is constrained by a grammar, which is compiled from the tool's schema.
    if request.json_schema is not None or request.tool_choice == "required":
        return False
    num = len(request.text or "") + len(request.token_ids or ())
    if request.conversation is not None:
        num += sum(len(message.content or "") for message in request.conversation.messages)
        num += sum(len(str(message.tool_calls)) for message in request.conversation.messages if message.tool_calls)
        num += len(str(request.tools)) if request.tools else 0
    return num <= SMALL_CHARACTERS
