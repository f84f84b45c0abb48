"""The answers that llama.cpp's server is writing: the request for each, its chunks read back as events, and its slot.

Each answer waits for its chunks in a separate thread, which holds no lock of Python while llama.cpp computes. What it
reads goes into one inbox, which is read by the one thread that owns the engine.

A slot keeps the keys and values of the last prompt that was read in it, with the adapter that read it; a request with
the same beginning and the same adapter continues from there.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.errors import BusyError, LuthierError, OverlongError, RequestError, WorkError
from luthier.core.ports import KeyedEvent
from luthier.core.stream import Ended, Failed, Piece, TextRequest, TokenLikelihood, WrittenToken
from luthier.core.system.process_setup import start_daemon
from luthier.ml.inference.engine_prompts import CallsInText
from luthier.ml.inference.llama_cpp.server import LlamaServer
from luthier.ml.inference.thoughts import NO_THINKING, AnswerText, Thinking


@dataclass(slots=True)
class _Slot:
    user: Hashable | None = None
    num_tokens: int = 0
    adapter: Hashable | None = None
    ids: Sequence[int] = ()
    last_used: int = 0


class Slots:
    """Slots of one server.

    Args:
        num_slots: answers that can be written in parallel.
        pool_tokens: of all that are in use at the same time.
    """

    def __init__(self, num_slots: int, pool_tokens: int) -> None:
        self._slots = [_Slot() for _ in range(num_slots)]
        self._pool_tokens = pool_tokens
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
        """The number of a free slot, the one with the longest beginning that can be used again; it is taken.

        Args:
            user: the request that takes it.
            adapter: adapter of the request; None for the base.
            ids: tokens of the prompt.
            num_tokens: tokens of prompt and longest answer.
        """
        free = [number for number, slot in enumerate(self._slots) if slot.user is None]

        def worth(number: int) -> tuple[int, int]:
            slot = self._slots[number]
            # Keys and values depend on the adapter that read the prompt: those of another are worthless.
            known = _num_alike(slot.ids, ids) if slot.adapter == adapter else 0
            # The most tokens that need not be read again; of equals, the slot that has been idle longest.
            return known, -slot.last_used

        chosen = max(free, key=worth)
        self._clock += 1
        self._slots[chosen] = _Slot(user, num_tokens, adapter, ids, self._clock)
        return chosen

    def give_back(self, number: int) -> None:
        """Nothing is written in it any more; what it has read stays."""
        self._slots[number].user = None


def _num_alike(first: Sequence[int], second: Sequence[int]) -> int:
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


_GREEDY_BELOW: Final = 1e-4
# The largest seed means "any" to llama.cpp.
_NUM_SEEDS: Final = (1 << 32) - 1


def request_body(
    asked: TextRequest,
    choice: int,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    scales: list[dict[str, Any]],
    slot: int,
    grammar: str | None = None,
    shown_marks: Sequence[str] = (),
    reuses_prompts: bool = True,
) -> dict[str, Any]:
    """The document that requests one choice.

    Every option that changes what is drawn is set, since llama.cpp's own defaults cut off unlikely tokens.

    Args:
        asked: the request.
        choice: number of the choice, from 0.
        ids: of the prompt.
        max_new_tokens: of thought and answer.
        scales: of all adapters (`LlamaServer.scales`).
        slot: of the server.
        grammar: what the answer must follow; None for nothing.
        shown_marks: special tokens that are to appear in the text.
        reuses_prompts: whether the slot resumes from what it has read.
    """
    rules = asked.sampling
    is_greedy = rules.temperature < _GREEDY_BELOW or rules.top_p == 0
    body: dict[str, Any] = {
        "prompt": list(ids),
        "max_tokens": max_new_tokens,
        "stream": True,
        "timings_per_token": True,
        "lora": scales,
        # Together: the slot continues from what it has read of this prompt before.
        "id_slot": slot,
        "cache_prompt": reuses_prompts,
        "temperature": 0.0 if is_greedy else rules.temperature,
        # In the order of `Sampler`: temperature, then top_p. llama.cpp's default list has more samplers, and top_p
        # first.
        "samplers": ["penalties", "temperature", "top_p"],
        "top_k": 0,
        "min_p": 0.0,
        "top_p": 1.0 if is_greedy else rules.top_p,
        "seed": (rules.seed + choice) % _NUM_SEEDS,  # each choice draws for itself
        "frequency_penalty": rules.frequency_penalty,
        "presence_penalty": rules.presence_penalty,
        "repeat_penalty": 1.0,
    }
    if rules.logit_bias:
        body["logit_bias"] = [[token, bias] for token, bias in rules.logit_bias]
    if grammar is not None:
        body["grammar"] = grammar
    if shown_marks:
        body["preserved_tokens"] = list(shown_marks)
    if asked.num_top is not None:
        # 0 would switch likelihoods off.
        body["logprobs"] = max(1, asked.num_top)
    return body


class AnswerReader:
    """Reads the chunks of one choice. `ended` is set with the last event, of any kind.

    Args:
        asked: the request.
        choice: number of the answer among those of the request.
        calls: finds tool calls in the text.
        thinking: how reasoning is delimited and limited.
    """

    def __init__(self, asked: TextRequest, choice: int, calls: CallsInText, thinking: Thinking = NO_THINKING) -> None:
        self._asked, self._choice, self._calls = asked, choice, calls
        self._answer = AnswerText(asked, thinking)
        self._num_new = self._num_characters = self._num_emitted = 0
        self._open_tokens: list[WrittenToken] = []
        self.ended = False

    def read(self, chunk: str) -> list[Piece | Ended]:
        """The events of a chunk.

        Raises:
            LuthierError: it reports a failure.
        """
        document = json.loads(chunk)
        if "choices" not in document:
            raise _failure(document)
        said = document["choices"][0]
        # The count has the end token in it.
        self._num_new = int((document.get("timings") or {}).get("predicted_n", self._num_new))
        text = said.get("text") or ""
        self._add_tokens((said.get("logprobs") or {}).get("content") or (), text)
        pieces: list[Piece | Ended] = self._piece(*self._answer.add(text, self._num_new))
        if self._answer.found_stop:
            return [*pieces, *self._end("stop", self._num_new)]
        if (reason := said.get("finish_reason")) is None:
            return [*pieces, *self._end("length", self._num_new)] if self._answer.is_full(self._num_new) else pieces
        # `predicted_n` counts the end token, which is not part of an answer.
        num_new = self._num_new - 1 if reason == "stop" else self._num_new
        return [*pieces, *self._end("stop" if reason == "stop" else "length", max(num_new, 0))]

    def _end(self, reason: Literal["stop", "length"], num_new: int) -> list[Piece | Ended]:
        was_found = self._answer.found_stop
        reasoning, left = ("", "") if was_found else self._answer.end(num_new)
        if self._answer.found_stop:
            num_emitted = self._answer.num_dropped + self._num_emitted + len(left)
            self._open_tokens = [token for token in self._open_tokens if token.offset < num_emitted]
            reason = "stop"
        elif reason == "stop" and self._open_tokens and not self._open_tokens[-1].chosen.token:
            self._open_tokens.pop()  # the end token itself
        self.ended = True
        self._num_new = num_new
        last = self._piece(reasoning, left, is_last=True)
        ended = Ended(
            choice=self._choice,
            reason=self._calls.reason(reason),
            num_new_tokens=num_new,
            num_thinking_tokens=min(self._answer.num_thinking, num_new),
            ends_in_thought=self._answer.ends_in_thought,
            stop_text=self._answer.stop_text,
        )
        return [*last, ended]

    def _piece(self, reasoning: str, text: str, *, is_last: bool = False) -> list[Piece | Ended]:
        self._num_emitted += len(text)
        tokens: list[WrittenToken] = []
        if self._open_tokens and (text or reasoning or is_last):
            num_emitted = self._answer.num_dropped + self._num_emitted
            tokens = [token for token in self._open_tokens if is_last or token.offset < num_emitted]
            self._open_tokens = self._open_tokens[len(tokens) :]
        text, calls = self._calls.split(text, is_last=is_last)
        if not (text or reasoning or tokens or calls):
            return []
        return [
            Piece(
                choice=self._choice,
                text=text,
                num_new_tokens=self._num_new,
                tokens=tuple(tokens),
                calls=calls,
                reasoning=reasoning,
            )
        ]

    def _add_tokens(self, said: Sequence[dict[str, Any]], text: str) -> None:
        # Text that was held back because a character was not complete comes with the token that completes it.
        place = self._num_characters + max(0, len(text) - sum(len(token["token"]) for token in said))
        for token in said:
            self._open_tokens.append(self._token(token, place))
            place += len(token["token"])
        self._num_characters += len(text)

    def _token(self, token: dict[str, Any], offset: int) -> WrittenToken:
        top = token.get("top_logprobs") or ()
        return WrittenToken(
            chosen=TokenLikelihood(token=token["token"], log_probability=token["logprob"]),
            offset=offset,
            top=tuple(
                TokenLikelihood(token=one["token"], log_probability=one["logprob"])
                for one in top[: self._asked.num_top or 0]
            ),
        )


def _failure(document: dict[str, Any]) -> LuthierError:
    error = document.get("error")
    error = error if isinstance(error, dict) else document
    words = f"llama.cpp says: {error.get('message') or json.dumps(document)[:400]}"
    if error.get("type") == "exceed_context_size_error":
        return OverlongError(words, expected="a prompt that fits into the context", do="shorten the prompt")
    if error.get("code") == 400:
        return RequestError(words, expected="a request that llama.cpp takes", do="see what it says")
    return WorkError(words, expected="an answer", do="ask again; the log of the server says more")


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
        stop: set when no client waits for more of it; its thread then stops llama.cpp.
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
        num_slots: answers that can be written in parallel.
        pool_tokens: tokens of all of them whose keys and values fit into memory.
        reuses_prompts: as `request_body` takes it.
    """

    def __init__(self, num_slots: int, pool_tokens: int, *, reuses_prompts: bool = True) -> None:
        self._num_slots, self._pool_tokens = num_slots, pool_tokens
        self._reuses_prompts = reuses_prompts
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
        """Begin with the choices of one request, after the event for it."""
        self._events.append(started)
        self._waiting.extend(choices)
        self._launch(server)

    def cancel(self, key: Hashable) -> None:
        """Cancel the request; its slots are free after the token that is being computed."""
        self._waiting = deque(choice for choice in self._waiting if choice.key != key)
        for choice in self._running:
            if choice.key == key:
                choice.stop.set()
        self._events = [event for event in self._events if event[0] != key]

    def poll(self, server: LlamaServer, wait_seconds: float) -> list[KeyedEvent]:
        """The events since the last call; waits at most that long where there are none."""
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
            # Makes `hear`, in the answer's thread, stop llama.cpp.
            choice.stop.set()
        # Threads cannot be killed; each stops at its next token.
        deadline = time.monotonic() + _END_SECONDS
        while self._running and time.monotonic() < deadline:
            self._take(1.0)

    def _launch(self, server: LlamaServer) -> None:
        """Begin with those that wait, in order, while there is room; a single one always fits."""
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
                reuses_prompts=self._reuses_prompts,
            )
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
        # In every case: without it the slot would never be freed.
        inbox.put((choice, None))


def _unreadable(chunk: str, error: Exception) -> WorkError:
    return WorkError(
        f"llama.cpp wrote {chunk[:200]!r}: {type(error).__name__}: {error}",
        expected="a chunk of an answer",
        do="ask again",
    )
