"""One engine of the engine process: the thread that owns it, and the threads that prepare its requests.

One thread per engine, so that loading a model, or waiting for another server, blocks no other engine. Engines that
compute in this process take turns, one step each: in parallel they would only compete for the processor.

Requests are prepared (rendered, tokenised, their schema compiled) outside of that thread, in two threads per engine:
one for small requests, one for those that may take long. So a prompt of megabytes or a schema that takes seconds to
compile delays neither running answers nor small requests of others; both threads serve API keys in turn.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from luthier.core.errors import DefectError, LuthierError, MemoryLimitError, UnsupportedError, WorkError
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import CountingEngine, DescribedEngine, PoolingEngine, Prepared, PreparingEngine, RestingEngine
from luthier.core.stream import (
    Decoding,
    Ended,
    Failed,
    Pooled,
    Served,
    Started,
    StreamEvent,
    TextRequest,
)
from luthier.core.system.process_setup import start_daemon
from luthier.features.serving.core_sharing import COMPUTING, CoreSharing
from luthier.ml.inference.adapter_names import AdapterNames
from luthier.platform.processes.fair_queue import FairQueue

if TYPE_CHECKING:
    from luthier.core.ports import StreamEngine


@dataclass(frozen=True, slots=True)
class Ask:
    """One request inside the engine process.

    Attributes:
        key: Its id, used by events and cancellation.
        request: The prompt, or the texts.
        adapter: The folder of an adapter over the engine's base; None for the engine's own model.
        owner: The API key, for fair scheduling; None for a local user.
    """

    key: str
    request: TextRequest | PoolingRequest
    adapter: str | None
    owner: str | None = None


def unexpected(error: Exception) -> WorkError:
    """The error for an engine that failed because of a bug, for all its requests; the traceback goes to the log."""
    sys.stderr.write("".join(traceback.format_exception(error)))
    return WorkError(
        f"the model failed while it wrote: {type(error).__name__}",
        expected="an answer",
        do="ask again; the log of the server says more",
    )


def defect(error: Exception) -> DefectError:
    """The error for a single request that failed because of a bug; the traceback goes to the log."""
    sys.stderr.write("".join(traceback.format_exception(error)))
    return DefectError(
        f"the request could not be prepared: {type(error).__name__}",
        expected="tokens of the model",
        do="report it with what the log of the server says; the same request will fail again",
    )


# Prompts up to this many characters are rendered and tokenised within hundredths of a second.
SMALL_CHARACTERS: Final = 32_768

Prepare = Callable[[TextRequest | PoolingRequest], Prepared]
TellPrepared = Callable[[Ask, Prepared | LuthierError], None]


class Preparation:
    """Prepares the requests of one engine.

    Args:
        prepare: Prepares one; called from any thread.
        tell: Called once with each request and its result.
        name: Of the engine, in the names of the threads.
    """

    def __init__(self, prepare: Prepare, tell: TellPrepared, name: str) -> None:
        self._prepare, self._tell = prepare, tell
        self._changed = threading.Condition()
        self._waiting: dict[bool, FairQueue[Ask]] = {True: FairQueue(), False: FairQueue()}  # by whether it is small
        self._is_closed = False
        for is_small in (True, False):
            start_daemon(partial(self._work, is_small), f"{'small' if is_small else 'large'} requests {name}")

    def add(self, ask: Ask) -> None:
        """Queue a request for preparation."""
        with self._changed:
            self._waiting[is_small(ask.request)].push(ask.owner, ask)
            self._changed.notify_all()

    def cancel(self, key: str) -> None:
        """Cancel a request; one that is being prepared is still reported."""
        with self._changed:
            for queue in self._waiting.values():
                queue.remove(lambda ask: ask.key == key)

    def close(self) -> None:
        """Stop accepting requests."""
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
                # The first of the heads belongs to the next owner.
                ask = queue.pop(queue.heads()[0][0])
            try:
                # Outside the lock: this is the slow part, which must not block `add`.
                made: Prepared | LuthierError = self._prepare(ask.request)
            except LuthierError as error:
                made = error
            except Exception as error:  # noqa: BLE001 - the other requests continue
                made = defect(error)
            self._tell(ask, made)


def is_small(request: TextRequest | PoolingRequest) -> bool:
    """Whether a request can be prepared quickly: little text and no grammar to compile."""
    if isinstance(request, PoolingRequest):
        turns = [message.content or "" for one in request.conversations for message in one.messages]
        texts = (*request.inputs, *turns, *(text for pair in request.pairs for text in pair))
        return sum(map(len, texts)) <= SMALL_CHARACTERS
    # A forced tool call is constrained by a grammar, which is compiled from the tool's schema.
    if request.json_schema is not None or request.tool_choice == "required":
        return False
    num = len(request.text or "") + len(request.token_ids or ())
    if request.conversation is not None:
        num += sum(len(message.content or "") for message in request.conversation.messages)
        num += sum(len(str(message.tool_calls)) for message in request.conversation.messages if message.tool_calls)
        num += len(str(request.tools)) if request.tools else 0
    return num <= SMALL_CHARACTERS


Tell = Callable[[Sequence[tuple[str, StreamEvent]]], None]
# How long an engine that waits for another server may delay a new request, in seconds; pieces are sent at once.
_WAIT_SECONDS: Final = 0.02
_REST_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Ready:
    """A request that is ready to start. prepared: by the engine; None if the engine prepares nothing."""

    ask: Ask
    prepared: Prepared | LuthierError | None = None


class TurnLock:
    """A fair lock: one thread at a time computes, in the order of arrival."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next, self._now = 0, 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Wait for a turn and hold it."""
        with self._changed:
            own, self._next = self._next, self._next + 1
            # Tickets instead of a plain Lock: the thread that has just released a Lock may reacquire it at once, so one
            # busy engine would starve the others.
            self._changed.wait_for(lambda: self._now == own)
        try:
            yield
        finally:
            with self._changed:
                self._now += 1
                self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class EngineContext:
    """The interface between scheduler and engine thread.

    Attributes:
        open_engine: Loads the model.
        tell: Sends events.
        wake: Triggers a scheduling round.
        adapter_bytes: Memory of an adapter in bytes, by its path.
        has_room: Whether this many more bytes fit the budget; if not, other models are closed.
        is_alone: Whether there are no other engines.
        turn_lock: Shared by all engines that compute in this process.
        sharing: How engines share the cores.
    """

    open_engine: Callable[[Served], StreamEngine]
    tell: Tell
    wake: Callable[[], None]
    adapter_bytes: Callable[[str], int]
    has_room: Callable[[EngineThread, int], bool]
    is_alone: Callable[[], bool]
    turn_lock: TurnLock
    sharing: CoreSharing


class EngineThread:
    """Opens one engine, runs its requests, and closes it. Only the scheduler calls it, from its own thread.

    Attributes:
        served: The model.
        num_bytes: Memory of the engine; an estimate until it is open.
        is_open: Whether the model is loaded.
        is_closing: Whether it has been asked to close.
        has_closed: Whether it has closed.
        decoding: Its decoding path; None until it is open, and for engines that do not report one.
        failure: What ended it; None while it runs, and where it was closed.
    """

    def __init__(self, served: Served, engine_context: EngineContext, num_bytes: int) -> None:
        self.served, self._engine_context, self.num_bytes = served, engine_context, num_bytes
        self.has_closed = self.is_closing = self.is_open = False
        self.decoding: Decoding | None = None
        self.failure: LuthierError | None = None
        self._lock = threading.Lock()
        # `_open` is written by the scheduler (`ask`) and by this engine's thread (`_forget`); the queues and adapters
        # are only used by the engine's own thread.
        self._open: dict[str, int] = {}  # by request: number of unfinished choices
        self._inbox: queue.SimpleQueue[Ask | _Ready | str | None] = queue.SimpleQueue()
        self._waiting: FairQueue[_Ready] = FairQueue()
        self._preparation: Preparation | None = None
        self._owner_of: dict[str, str | None] = {}  # of started requests
        self._adapters: OrderedDict[str, None] = OrderedDict()  # loaded adapters, least recently used first
        self._adapter_of: dict[str, str] = {}  # by request
        self._names = AdapterNames()
        start_daemon(self._live, f"engine {served.path}")

    @property
    def is_idle(self) -> bool:
        """Whether it has no requests."""
        return not self._open

    def is_writing(self, key: str) -> bool:
        """Whether a request has not ended yet."""
        return key in self._open

    def ask(self, ask: Ask) -> bool:
        """Queue a request; false if the engine has closed."""
        with self._lock:
            if self.has_closed:
                return False
            self._open[ask.key] = ask.request.num_choices if isinstance(ask.request, TextRequest) else 1
        # Counted in `_open` before it is queued: otherwise the scheduler could see an idle engine and close it in
        # between.
        self._inbox.put(ask)
        return True

    def cancel(self, key: str) -> None:
        """Cancel a request; no effect if it has ended."""
        self._inbox.put(key)

    def close(self) -> None:
        """Close the engine; `has_closed` is set when that is done."""
        self.is_closing = True
        self._inbox.put(None)

    def _live(self) -> None:
        try:
            self._write_all()
        except LuthierError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001 - the other engines continue
            self.failure = unexpected(error)
        with self._lock:
            # Under the lock of `ask`: a request is either in `left` and fails here, or is rejected by `ask`.
            self.has_closed, left = True, list(self._open)
        reason = self.failure or WorkError("the model was let go", expected="an answer", do="ask again")
        self._tell([(key, Failed.of(reason, is_of_engine=True)) for key in left])
        self._engine_context.wake()

    def _write_all(self) -> None:
        engine, sharing = self._engine_context.open_engine(self.served), self._engine_context.sharing
        try:
            self.num_bytes = engine.num_bytes
            self.decoding = engine.decoding if isinstance(engine, DescribedEngine) else None
            self.is_open = True
            if isinstance(engine, PreparingEngine):
                self._preparation = Preparation(engine.prepare, self._made_ready, str(self.served.path))
            self._engine_context.wake()
            while self._read_inbox(engine):
                self._take_up_all(engine)
                # A waiting request is retried after a poll, even if no key is left: ended requests may not be cleaned
                # up yet.
                if engine.keys or self._waiting:
                    is_computing = self.served.engine in COMPUTING
                    with self._engine_context.turn_lock.one() if is_computing else contextlib.nullcontext():
                        # Only local computation takes turns: an engine that waits for another server would block all
                        # others.
                        sharing.before_step(self.served.engine, engine)
                        events = engine.poll(_WAIT_SECONDS)
                        sharing.after_step(engine)
                    self._tell([(str(key), event) for key, event in events])
                else:
                    # Where the last request was cancelled, no step follows after which the cores would be free.
                    sharing.leave(engine)
        finally:
            if self._preparation is not None:
                self._preparation.close()
            sharing.leave(engine)
            engine.close()

    def _made_ready(self, ask: Ask, prepared: Prepared | LuthierError) -> None:
        self._inbox.put(_Ready(ask, prepared))

    def _read_inbox(self, engine: StreamEngine) -> bool:
        """Read messages, waiting if idle; false if the engine should close."""
        if engine.keys:
            wait_seconds: float | None = 0.0
        elif self._waiting:
            wait_seconds = _WAIT_SECONDS
        else:
            wait_seconds = _REST_SECONDS if isinstance(engine, RestingEngine) else None
        while True:
            try:
                said = self._inbox.get(wait_seconds != 0, wait_seconds or None)
            except queue.Empty:
                if wait_seconds == _REST_SECONDS and isinstance(engine, RestingEngine):
                    engine.rest()
                return True
            # Only the first read may block; the rest of the inbox is drained without waiting.
            wait_seconds = 0.0
            if said is None:
                return False
            if isinstance(said, str):
                self._cancel(engine, said)
            else:
                self._take_in(engine, said)

    def _cancel(self, engine: StreamEngine, key: str) -> None:
        if self._preparation is not None:
            self._preparation.cancel(key)
        self._waiting.remove(lambda ready: ready.ask.key == key)
        engine.cancel(key)
        self._forget(key)

    def _take_in(self, engine: StreamEngine, said: Ask | _Ready) -> None:
        """Start preparing a request, or queue a prepared one."""
        ask = said if isinstance(said, Ask) else said.ask
        if isinstance(said, Ask):
            if isinstance(ask.request, PoolingRequest) and not isinstance(engine, PoolingEngine):
                self._fail([ask.key], self._no_pooling())
            elif self._preparation is not None:
                self._preparation.add(ask)
            else:
                self._waiting.push(ask.owner, _Ready(ask))
        elif isinstance(said.prepared, LuthierError):
            self._fail([ask.key], said.prepared)
        elif ask.key not in self._open:  # it was cancelled during preparation
            return
        elif isinstance(ask.request, TextRequest) and ask.request.counts_tokens and isinstance(engine, CountingEngine):
            num_tokens = engine.num_prompt_tokens(said.prepared)
            counted = Ended(reason="length", num_new_tokens=0)
            self._tell([(ask.key, Started(num_prompt_tokens=num_tokens)), (ask.key, counted)])
        else:
            self._waiting.push(ask.owner, said)

    def _take_up_all(self, engine: StreamEngine) -> None:
        """Start requests while there is room, serving keys in turn.

        If the next request has to wait for room, owners without running requests may use the reserve; all others wait
        behind it: otherwise small requests could overtake a large one forever.
        """
        is_blocked = False
        while heads := self._waiting.heads():
            busy = set(self._owner_of.values())
            for owner, ready in heads:
                # The reserve is for owners without running requests while others have some; a single owner does not
                # need it.
                is_new = bool(busy) and owner not in busy
                if (not is_blocked or is_new) and self._take_up(engine, ready, may_exceed=is_new):
                    self._waiting.pop(owner)
                    break
                is_blocked = True
            else:
                return

    def _take_up(self, engine: StreamEngine, ready: _Ready, *, may_exceed: bool) -> bool:
        """Start a request; false if it has to wait. One that cannot be served fails and is finished."""
        ask = ready.ask
        try:
            name: str | None = None
            if ask.adapter is not None:
                name = self._adapter_of.get(ask.key) or self._names.of(ask.adapter)
                if not self._has_adapter(engine, name, ask.adapter):
                    return False
                # In use from here on, even while the request waits for room in the batch: it must not be unloaded.
                self._adapter_of[ask.key] = name
            if not self._begin(engine, ready, name, may_exceed=may_exceed):
                return False
            self._owner_of[ask.key] = ask.owner
        except LuthierError as error:
            self._fail([ask.key], error)
        return True

    def _begin(self, engine: StreamEngine, ready: _Ready, adapter: str | None, *, may_exceed: bool) -> bool:
        ask = ready.ask
        if isinstance(engine, PreparingEngine):
            return engine.admit(ask.key, ready.prepared, adapter, owner=ask.owner, may_exceed=may_exceed)
        if isinstance(ask.request, TextRequest):
            return engine.ask(ask.key, ask.request, adapter)
        assert isinstance(engine, PoolingEngine)  # otherwise `_take_in` has rejected it
        return engine.ask_pooling(ask.key, ask.request, adapter)

    def _no_pooling(self) -> UnsupportedError:
        return UnsupportedError(
            f"embeddings of a model that runs with the engine {self.served.engine}",
            expected="a model that runs with transformers",
            do="ask another model for embeddings: a base model of this server, or a model tuned here",
            param="model",
        )

    def _has_adapter(self, engine: StreamEngine, adapter: str, path: str) -> bool:
        """Whether the adapter is loaded or can be: unused adapters are unloaded for it, the oldest first."""
        if adapter not in self._adapters:
            num_bytes = self._engine_context.adapter_bytes(path)
            # Adapters of running requests stay: unloading one would change the weights in the middle of a text.
            in_use = Counter(self._adapter_of.values())
            idle = [name for name in self._adapters if not in_use[name]]
            while not self._engine_context.has_room(self, num_bytes):
                if not idle:
                    if not engine.keys and self._engine_context.is_alone():
                        # Nothing can free memory later, so waiting would never end.
                        raise _too_large(f"the adapter {path} beside its base", num_bytes + self.num_bytes)
                    return False
                self._adapters.pop(idle[0])
                engine.unload_adapter(idle.pop(0))
                self.num_bytes = engine.num_bytes
            engine.load_adapter(adapter, path)
            self.num_bytes = engine.num_bytes
        self._adapters[adapter] = None
        self._adapters.move_to_end(adapter)
        return True

    def _tell(self, events: Sequence[tuple[str, StreamEvent]]) -> None:
        if not events:
            return
        # Sent before it is removed: once nothing is open, the scheduler may close this engine.
        self._engine_context.tell(events)
        for key, event in events:
            if isinstance(event, Failed | Pooled):
                self._forget(key)
            elif isinstance(event, Ended) and key in self._open:
                # A request with several choices ends with the last of them.
                self._open[key] -= 1
                if not self._open[key]:
                    self._forget(key)

    def _forget(self, key: str) -> None:
        self._adapter_of.pop(key, None)
        self._owner_of.pop(key, None)
        if self._open.pop(key, None) is not None and not self._open:
            self._engine_context.wake()

    def _fail(self, keys: list[str], error: LuthierError) -> None:
        self._tell([(key, Failed.of(error)) for key in keys])


def _too_large(what: str, num_bytes: int) -> MemoryLimitError:
    return MemoryLimitError(
        f"{what} takes {num_bytes / 1e9:.1f} GB, more than models may take on this server",
        expected="models within LUTHIER_SERVING_MEMORY_BYTES",
        do="ask the operator of this server to raise it, or ask a smaller model",
    )


def too_large(served: Served, num_bytes: int) -> MemoryLimitError:
    """The error for a single model that exceeds the budget."""
    return _too_large(f"the model in {served.path}", num_bytes)
