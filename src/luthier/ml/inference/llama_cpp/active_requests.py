"""The answers that llama.cpp's server is writing: a thread and a slot for each.

Each answer waits for its chunks in a separate thread, which holds no lock of Python while llama.cpp computes. What it
reads goes into one inbox, which is read by the one thread that owns the engine.

A slot keeps the keys and values of the last prompt that was read in it, with the adapter that read it; a request with
the same beginning, the same adapter and the same scope continues from there.

llama.cpp goes through its slots by number. Of the prompts to be read it takes the first, so that short ones get lower
numbers than long ones. Answers with another adapter than that of the first answer wait until there is none with this
one any more, so that no further ones begin while others wait (`Writing.has_room_for`).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import BusyError, LuthierError, WorkError
from luthier.core.ports import KeyedEvent
from luthier.core.stream import Ended, Failed, Piece, TextRequest
from luthier.core.system.process_setup import start_daemon
from luthier.ml.inference.llama_cpp.one_answer import AnswerReader, request_body
from luthier.ml.inference.llama_cpp.server import STEP_TOKENS, LlamaServer


@dataclass(slots=True)
class _Slot:
    user: Hashable | None = None
    num_tokens: int = 0
    adapter: Hashable | None = None
    ids: Sequence[int] = ()
    last_used: int = 0
    is_long: bool = False
    reuses: bool = False


class Slots:
    """Slots of one server.

    Args:
        num_slots: answers that can be written in parallel.
        pool_tokens: of all that are in use at the same time.
        step_tokens: of one step; a prompt with more of them to read is a long one.
    """

    def __init__(self, num_slots: int, pool_tokens: int, step_tokens: int = STEP_TOKENS) -> None:
        self._slots = [_Slot() for _ in range(num_slots)]
        self._pool_tokens, self._step_tokens = pool_tokens, step_tokens
        self._clock = 0

    @property
    def num_used(self) -> int:
        """Slots in which something is written."""
        return sum(slot.user is not None for slot in self._slots)

    def has_room_for(self, num: int, num_tokens: int) -> bool:
        """Whether that many answers of that many tokens each, prompts included, fit with the active ones."""
        used = sum(slot.num_tokens for slot in self._slots if slot.user is not None)
        return num <= len(self._slots) - self.num_used and used + num * num_tokens <= self._pool_tokens

    def take(self, user: Hashable, adapter: Hashable | None, ids: Sequence[int], num_tokens: int) -> int:
        """The number of a free slot, which is taken.

        It is the one with the longest beginning that can be used again, of those in which no more is lost than that:
        nearly all prompts begin with the same few tokens of a template, and a conversation would lose its slot to the
        next request whatever that is. Where there is none, it is the one that has been idle longest.

        Args:
            user: the request that takes it.
            adapter: adapter of the request, or whatever tells prompts apart that must not be continued by each other.
            ids: tokens of the prompt.
            num_tokens: tokens of prompt and longest answer.
        """
        free = [number for number, slot in enumerate(self._slots) if slot.user is None]
        # Keys and values depend on the adapter that read the prompt: those of another are worthless.
        known = {
            number: _num_alike(self._slots[number].ids, ids) if self._slots[number].adapter == adapter else 0
            for number in free
        }
        useful = [number for number in free if known[number] and 2 * known[number] >= len(self._slots[number].ids)]
        fitting = useful or self._in_order(free, is_long=len(ids) > self._step_tokens)
        # The most tokens that need not be read again; of equals, the slot that has been idle longest.
        chosen = max(fitting, key=lambda number: (known[number] if useful else 0, -self._slots[number].last_used))
        self._clock += 1
        is_long = len(ids) - known[chosen] > self._step_tokens
        # Nothing is in a slot that was never used.
        reuses = not self._slots[chosen].ids or self._slots[chosen].adapter == adapter
        self._slots[chosen] = _Slot(user, num_tokens, adapter, ids, self._clock, is_long, reuses)
        return chosen

    def reuses(self, number: int) -> bool:
        """Whether a slot that was taken may continue from what it has read before: that was read in the same way."""
        return self._slots[number].reuses

    def _in_order(self, free: list[int], *, is_long: bool) -> list[int]:
        """Of these slots the ones in which short prompts are read before long ones; all of them if there is none."""
        if is_long:
            found = [number for number in free if number >= len(self._slots) // 2]
        else:
            long_ones = [number for number, slot in enumerate(self._slots) if slot.user is not None and slot.is_long]
            found = [number for number in free if number < min(long_ones, default=len(self._slots))]
        return found or free

    def give_back(self, number: int) -> None:
        """Nothing is written in it any more; what it has read stays."""
        self._slots[number].user = None


def _num_alike(first: Sequence[int], second: Sequence[int]) -> int:
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


_END_SECONDS: Final = 60.0
_WAIT_SECONDS: Final = 2.0


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
        heard_at: when llama.cpp said something of it last, or got it.
        stop: set when no client waits for more of it; its thread then stops llama.cpp.
        pause: set when it is to continue with another server; its thread then stops llama.cpp.
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
    heard_at: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    pause: threading.Event = field(default_factory=threading.Event)
    _num_prompt: int = field(init=False)
    _max_new: int = field(init=False)

    def __post_init__(self) -> None:
        self._num_prompt, self._max_new = len(self.ids), self.max_new_tokens

    @property
    def can_move(self) -> bool:
        """Whether another server can continue it: a grammar would begin again, and likelihoods count characters."""
        return self.grammar is None and self.asked.num_top is None

    def resume(self, server: LlamaServer) -> list[Piece | Ended]:
        """Continue behind what it has written so far, in a server that has read nothing of it.

        The text is tokenised, since llama.cpp does not say the ids of what it writes. Returns the end of an answer that
        was stopped between its last token and the chunk with its end.
        """
        self.pause.clear()
        written = self.reader.received
        ids = server.continuation_ids(written, parse_special=bool(self.shown_marks)) if written else []
        num_before = self.reader.resume()
        self.ids = [*self.ids[: self._num_prompt], *ids]
        # The text may have more tokens than were written.
        self.max_new_tokens = min(self._max_new - num_before, server.context_tokens - len(self.ids))
        return self.reader.end_at_limit() if self.max_new_tokens < 1 else []

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
        num_slots: answers that can be written in parallel.
        pool_tokens: tokens of all of them whose keys and values fit into memory.
        reuses_prompts: as `request_body` takes it.
        step_tokens: as `Slots` takes it.
        clock: seconds on a clock that is never set.
    """

    def __init__(
        self,
        num_slots: int,
        pool_tokens: int,
        *,
        reuses_prompts: bool = True,
        step_tokens: int = STEP_TOKENS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_slots = partial(Slots, num_slots, pool_tokens, step_tokens)
        self._reuses_prompts, self._clock = reuses_prompts, clock
        self._slots = self._new_slots()
        # Written by the threads of answers, read by the engine's thread; all other state is the engine's alone.
        self._inbox: queue.SimpleQueue[tuple[Choice, str | None]] = queue.SimpleQueue()
        self._waiting: deque[Choice] = deque()
        self._running: set[Choice] = set()
        # To be continued with another server; those that llama.cpp still writes are in `_running`.
        self._paused: list[Choice] = []
        self._is_paused = False
        self._events: list[KeyedEvent] = []

    @property
    def keys(self) -> set[Hashable]:
        """The requests whose answers are being written, or have events that `poll` has not returned yet."""
        going = {choice.key for choice in (*self._running, *self._paused, *self._waiting) if choice.is_going}
        # An engine without keys is not polled: an end that `settle` has read would never arrive.
        return going | {key for key, _ in self._events}

    @property
    def is_idle(self) -> bool:
        """Whether the server has nothing to do."""
        return not self._running and not self._waiting and not self._paused

    @property
    def is_pausing(self) -> bool:
        """Whether all answers are to continue with another server."""
        return self._is_paused

    @property
    def has_stopped(self) -> bool:
        """Whether llama.cpp writes nothing at the moment."""
        return not self._running

    def pause(self) -> bool:
        """Have llama.cpp stop all answers, to be continued by `resume`; false where one of them cannot be.

        Each stops after its current token, or after the current part of its prompt, which is read again then.
        """
        if not all(choice.can_move for choice in self._running):
            return False
        self._is_paused = True
        for choice in self._running:
            choice.pause.set()
        return True

    def resume(self, server: LlamaServer) -> None:
        """Continue the answers that were paused, before those that wait.

        Args:
            server: writes from now on.
        """
        self._is_paused = False
        for choice in self._paused:
            try:
                self._events += [(choice.key, event) for event in choice.resume(server)]
            except LuthierError as error:
                self._fail(choice, error)
        self._waiting.extendleft(reversed([choice for choice in self._paused if choice.is_going]))
        self._paused.clear()
        self._launch(server)

    def fail_all(self, error: LuthierError) -> None:
        """End the answers that are paused or wait: there is no server for them."""
        self._is_paused = False
        for choice in (*self._paused, *self._waiting):
            self._fail(choice, error)

    def has_room_for(self, num: int, num_tokens: int, adapter: Path | None = None) -> bool:
        """Whether answers can be taken up; those of one request alone always can.

        While answers with another adapter wait for the ones that llama.cpp computes now, none are: as long as new ones
        joined these, the others would wait.

        Args:
            num: of answers.
            num_tokens: of each.
            adapter: path of their adapter; None for the base.
        """
        if self.is_idle:
            return True
        return not self._waiting and self._slots.has_room_for(num, num_tokens) and not self._gives_way(adapter)

    def _gives_way(self, adapter: Path | None) -> bool:
        """Whether an answer with another adapter has waited for long while others were written."""
        going = [choice for choice in self._running if choice.is_going]
        return any(
            one.adapter != adapter and other.adapter != one.adapter and other.heard_at - one.heard_at > _WAIT_SECONDS
            for one in going
            for other in going
        )

    def forget_slots(self) -> None:
        """The server is a new one."""
        self._slots = self._new_slots()

    def begin(self, server: LlamaServer, started: KeyedEvent, choices: Sequence[Choice]) -> None:
        """Begin with the choices of one request, after the event for it."""
        self._events.append(started)
        self._waiting.extend(choices)
        self._launch(server)

    def cancel(self, key: Hashable) -> None:
        """Cancel the request; its slots are free after the token, or the part of a prompt, that is being computed."""
        self._waiting = deque(choice for choice in self._waiting if choice.key != key)
        self._paused = [choice for choice in self._paused if choice.key != key]
        for choice in self._running:
            if choice.key == key:
                choice.stop.set()
        self._events = [event for event in self._events if event[0] != key]

    def poll(self, server: LlamaServer, wait_seconds: float) -> list[KeyedEvent]:
        """The events since the last call; waits at most that long where there are none."""
        if self._running and not self._events:
            self._take(wait_seconds)
        self.settle()
        self._launch(server)
        events, self._events = self._events, []
        return events

    def settle(self) -> None:
        """Read what has come from threads of answers: one that was cancelled holds its slot until its end is read."""
        while not self._inbox.empty():
            self._take(0)

    def end(self) -> None:
        """Write no more of anything, and wait until llama.cpp has stopped."""
        self._waiting.clear()
        self._paused.clear()
        for choice in self._running:
            # Makes `hear`, in the answer's thread, stop llama.cpp.
            choice.stop.set()
        # Threads cannot be killed; each stops at its next token.
        deadline = time.monotonic() + _END_SECONDS
        while self._running and time.monotonic() < deadline:
            self._take(1.0)

    def _launch(self, server: LlamaServer) -> None:
        """Begin with those that wait, in order, while there is room; a single one always fits."""
        while self._waiting and not self._is_paused:
            choice = self._waiting[0]
            # In order: a small answer behind a large one does not overtake it, or the large one might wait forever.
            if self._running and not self._slots.has_room_for(1, choice.num_tokens):
                return
            self._waiting.popleft()
            # The scope, too: a project must not find out by the time what another one has asked.
            reader = choice.adapter, choice.asked.cache_scope
            choice.slot = self._slots.take(choice, reader, choice.ids, choice.num_tokens)
            body = request_body(
                choice.asked,
                choice.number,
                choice.ids,
                max_new_tokens=choice.max_new_tokens,
                scales=server.scales(choice.adapter),
                slot=choice.slot,
                grammar=choice.grammar,
                shown_marks=choice.shown_marks,
                reuses_prompts=self._reuses_prompts and self._slots.reuses(choice.slot),
            )
            choice.heard_at = self._clock()
            self._running.add(choice)
            try:
                # A daemon, so that a hanging answer does not keep the process alive.
                start_daemon(partial(_write, server, body, choice, self._inbox), "llama.cpp answer")
            except BusyError as error:
                # No thread will report the end of it: its slot is freed here, or never.
                self._running.discard(choice)
                self._slots.give_back(choice.slot)
                self._fail(choice, error)

    def _take(self, wait_seconds: float) -> None:
        """Read one chunk from the inbox, if one comes in time."""
        try:
            choice, chunk = self._inbox.get(timeout=wait_seconds) if wait_seconds else self._inbox.get_nowait()
        except queue.Empty:
            return
        choice.heard_at = self._clock()
        if chunk is None:
            # The thread has ended: only now is its slot free.
            self._running.discard(choice)
            # Not when the last event comes: llama.cpp may still compute a token in this slot.
            self._slots.give_back(choice.slot)
            if choice.is_going and choice.pause.is_set():
                self._paused.append(choice)
            elif choice.is_going:
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
        # True has llama.cpp stop after this token, or after this part of the prompt.
        return choice.stop.is_set() or choice.pause.is_set()

    try:
        server.complete(body, hear)
    finally:
        # In every case: without it the slot would never be freed.
        inbox.put((choice, None))


def _unreadable(chunk: str, error: Exception) -> WorkError:
    return WorkError(
        f"llama.cpp wrote {chunk[:200]!r}: {type(error).__name__}: {error}",
        expected="a chunk of an answer",
        do="ask again",
    )
