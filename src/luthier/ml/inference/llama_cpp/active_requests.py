"""The answers that llama.cpp's server is writing: each waits for its chunks in a thread of its own.

Such a thread holds no lock of Python while llama.cpp computes. What it hears goes into one inbox, which is read by
the one thread that owns the engine.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import BusyError, LuthierError, WorkError
from luthier.core.ports import KeyedEvent
from luthier.core.stream import Failed, TextRequest
from luthier.core.system.threads import start_daemon
from luthier.ml.inference.llama_cpp.answers import AnswerReader, request_body
from luthier.ml.inference.llama_cpp.server import LlamaServer
from luthier.ml.inference.llama_cpp.slots import Slots

_END_SECONDS: Final = 60.0


@dataclass(slots=True, eq=False)
class Choice:
    """One answer, waiting or being written.

    Attributes:
        key: of its request.
        number: of the choice, from 0.
        asked: the request.
        adapter: path of the adapter; None for the base.
        ids: of its prompt.
        max_new_tokens: of thought and answer.
        reader: turns chunks into events.
        grammar, shown_marks: as `request_body` takes them.
        slot: of the server; -1 while it waits.
        stop: set when nobody waits for more of it; its thread then has llama.cpp stop.
    """

    key: Hashable
    number: int
    asked: TextRequest
    adapter: Path | None
    ids: Sequence[int]
    max_new_tokens: int
    reader: AnswerReader
    grammar: str | None = None
    shown_marks: tuple[str, ...] = ()
    slot: int = -1
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def num_tokens(self) -> int:
        """Of its prompt and all that it may write."""
        return len(self.ids) + self.max_new_tokens

    @property
    def is_going(self) -> bool:
        """Whether the client is still connected."""
        return not self.stop.is_set() and not self.reader.ended


class Writing:
    """All answers of one engine.

    Args:
        num_slots, pool_tokens: as of its server.
    """

    def __init__(self, num_slots: int, pool_tokens: int) -> None:
        self._num_slots, self._pool_tokens = num_slots, pool_tokens
        self._slots = Slots(num_slots, pool_tokens)
        # Written by the threads of answers, read by the engine's thread; all other state is the engine's alone.
        self._inbox: queue.SimpleQueue[tuple[Choice, str | None]] = queue.SimpleQueue()
        self._waiting: deque[Choice] = deque()
        self._running: set[Choice] = set()
        self._events: list[KeyedEvent] = []

    @property
    def keys(self) -> set[Hashable]:
        """The requests whose answers are being written."""
        return {choice.key for choice in (*self._running, *self._waiting) if choice.is_going}

    @property
    def is_idle(self) -> bool:
        """Whether the server has nothing to do."""
        return not self._running and not self._waiting

    def has_room_for(self, num: int, num_tokens: int) -> bool:
        """Whether that many answers of that many tokens can be taken up; those of one request alone always can."""
        return self.is_idle or (not self._waiting and self._slots.has_room_for(num, num_tokens))

    def forget_slots(self) -> None:
        """The server is a new one."""
        self._slots = Slots(self._num_slots, self._pool_tokens)

    def begin(self, server: LlamaServer, started: KeyedEvent, choices: Sequence[Choice]) -> None:
        """Begin with the choices of one request, after the event that says so."""
        self._events.append(started)
        self._waiting.extend(choices)
        self._launch(server)

    def cancel(self, key: Hashable) -> None:
        """Nobody listens to this request any more; its slots are free after the token that is being computed."""
        self._waiting = deque(choice for choice in self._waiting if choice.key != key)
        for choice in self._running:
            if choice.key == key:
                choice.stop.set()
        self._events = [event for event in self._events if event[0] != key]

    def poll(self, server: LlamaServer, wait_seconds: float) -> list[KeyedEvent]:
        """What has been said since the last call; waits at most that long where there is nothing."""
        if self._running and not self._events:
            self._take(wait_seconds)
        while not self._inbox.empty():
            self._take(0)
        self._launch(server)
        events, self._events = self._events, []
        return events

    def end(self) -> None:
        """Write no more of anything, and wait until llama.cpp has stopped."""
        self._waiting.clear()
        for choice in self._running:
            # Tells `hear`, in the answer's thread, to have llama.cpp stop.
            choice.stop.set()
        # Threads cannot be killed; each stops at its next token.
        deadline = time.monotonic() + _END_SECONDS
        while self._running and time.monotonic() < deadline:
            self._take(1.0)

    def _launch(self, server: LlamaServer) -> None:
        """Begin with those that wait, in order, as far as there is room; one alone always has."""
        while self._waiting:
            choice = self._waiting[0]
            # In order: a small answer behind a large one does not overtake it, or the large one might wait for ever.
            if self._running and not self._slots.has_room_for(1, choice.num_tokens):
                return
            self._waiting.popleft()
            choice.slot = self._slots.take(choice, choice.adapter, choice.ids, choice.num_tokens)
            body = request_body(
                choice.asked,
                choice.number,
                choice.ids,
                max_new_tokens=choice.max_new_tokens,
                scales=server.scales(choice.adapter),
                slot=choice.slot,
                grammar=choice.grammar,
                shown_marks=choice.shown_marks,
            )
            self._running.add(choice)
            try:
                # A daemon, so that a hanging answer does not keep the process alive.
                start_daemon(partial(_write, server, body, choice, self._inbox), "llama.cpp answer")
            except BusyError as error:
                # No thread will report the end of it: its slot is given back here, or nobody ever gets it again.
                self._running.discard(choice)
                self._slots.give_back(choice.slot)
                self._fail(choice, error)

    def _take(self, wait_seconds: float) -> None:
        """Read one chunk from the inbox, if one comes in time."""
        try:
            choice, chunk = self._inbox.get(timeout=wait_seconds) if wait_seconds else self._inbox.get_nowait()
        except queue.Empty:
            return
        if chunk is None:
            # The thread has ended: only now is its slot free.
            self._running.discard(choice)
            # Not when the last event comes: llama.cpp may still compute a token in this slot.
            self._slots.give_back(choice.slot)
            if choice.is_going:
                self._fail(choice, WorkError("llama.cpp stopped in an answer", expected="its end", do="ask again"))
        elif choice.is_going:
            try:
                self._events += [(choice.key, event) for event in choice.reader.read(chunk)]
            except (LuthierError, ValueError, KeyError, TypeError, IndexError) as error:
                self._fail(choice, error if isinstance(error, LuthierError) else _unreadable(chunk, error))
            if choice.reader.ended:
                choice.stop.set()

    def _fail(self, choice: Choice, error: LuthierError) -> None:
        self.cancel(choice.key)
        choice.stop.set()
        self._events.append((choice.key, Failed.of(error)))


def _write(
    server: LlamaServer, body: dict[str, Any], choice: Choice, inbox: queue.SimpleQueue[tuple[Choice, str | None]]
) -> None:
    def hear(chunk: str) -> bool:
        inbox.put((choice, chunk))
        return choice.stop.is_set()  # true has llama.cpp stop after this token

    try:
        server.complete(body, hear)
    finally:
        # Whatever happens: without it the slot would never come back.
        inbox.put((choice, None))


def _unreadable(chunk: str, error: Exception) -> WorkError:
    return WorkError(
        f"llama.cpp said {chunk[:200]!r}: {type(error).__name__}: {error}",
        expected="a chunk of an answer",
        do="ask again",
    )
