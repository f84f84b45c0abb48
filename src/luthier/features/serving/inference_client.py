"""The client of the engine process: thread-safe requests and events, with admission control.

One child process (`engine_process`), started by the first request. It ends with this process, however that ends; when
it has been idle for a while; or when it crashes: running requests then fail (503, retryable), and the next request
starts a new one, except for a model whose loading crashes it again and again (`crash_pauses`). This process never loads
torch. Admission control limits the total number of requests and those of each key, and sets Retry-After on rejections.
Of a model with two engines it picks the one for each request (`engine_balance`), and may hand a request that has not
begun to the other one (`open_request`).
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from luthier.core.child_process.process import ChildProcess
from luthier.core.errors import WorkError
from luthier.core.pooling import PoolingRequest
from luthier.core.stream import (
    Failed,
    LoadedModel,
    Served,
    StreamEvent,
    TextRequest,
    stream_event,
)
from luthier.core.system.process_setup import usable_threads
from luthier.features.serving.admission_queue import AdmissionQueue, NoSlot, Slot
from luthier.features.serving.crash_pauses import CrashPauses
from luthier.features.serving.engine_balance import EngineBalance, EnginePick
from luthier.features.serving.open_request import OnEvent, OpenRequest, PickedRequest, document_of, num_choices_of
from luthier.platform.home.settings import Settings
from luthier.platform.processes.queued_process import QueuedProcess

Event = StreamEvent

_SERVE: Final = "luthier.features.serving.engine_process:serve"
_LOOK_SECONDS: Final = 5.0


class InferenceClient:
    """Sends requests to the engine process. All methods are thread-safe and none waits for a model.

    Args:
        settings: Of the home.
        has_session: Whether the engine process leads its own session, and so has the usual priority whatever this
            process has.
    """

    def __init__(self, settings: Settings, *, has_session: bool = True) -> None:
        self._settings, self._has_session = settings, has_session
        self._lock = threading.Lock()
        self._admission_queue = AdmissionQueue(settings.serving_queue, settings.serving_queue_per_key)
        self._child: _Child | None = None
        self._is_closed = False
        self.num_vllm = 0
        """How many models run in vLLM at once, to divide a card between them; 0 where it is not known."""
        self._balance = EngineBalance()
        self._crashes = CrashPauses()
        # Requests of models with two engines that have not begun. Single operations on a set are atomic.
        self._movable: set[PickedRequest] = set()

    @property
    def num_requests(self) -> dict[tuple[str, str], int]:
        """Requests for text by engine and by the reason for it."""
        return {(engine, reason): num for (engine, reason), num in self._balance.num_requests.items()}

    def pick(self, model: Served, requests: Sequence[TextRequest], engine: str | None = None) -> EnginePick:
        """The engine that answers the prompts of one request, by the load of the moment.

        Where the faster one is not in memory, it is loaded in the background.

        Args:
            model: The model, with its fallback and rates.
            requests: The prompts.
            engine: The engine that the request asks for; None or `auto` for any.

        Raises:
            RequestError: The engine that is asked for does not run this model, or not such a request.
        """
        found = self._balance.pick(model, requests, self.loaded, engine)
        if found.loads is not None and (child := self._child) is not None:
            child.load(found.loads, found.num_bytes)
        if found.pair is not None and found.reason == "load":
            # Of clients that ask at once the first ones would else be answered by the engine for a few.
            for one in tuple(self._movable):
                if one.pick.pair == found.pair and (other := self._balance.follow(one.pick, found)) is not None:
                    one.move(other)
        return found

    def ask_picked(
        self,
        pick: EnginePick,
        request: TextRequest,
        hear: OnEvent,
        *,
        as_loaded: Callable[[Served], Served],
        key: str | None = None,
        moved: Callable[[EnginePick], None] = lambda _: None,
        had_slot: bool = False,
    ) -> Callable[[], None]:
        """As `ask`, with an engine of `pick`; before it writes, the other one may replace it, once.

        That is where it fails, and where the load of later requests asks for the other one.

        Args:
            pick: The engine.
            request: The prompt.
            hear: As of `ask`.
            as_loaded: Makes the model of a pick loadable.
            key: As of `ask`.
            moved: Called with the other engine before its first event, where it answers instead.
            had_slot: Whether it takes the slot of a prompt of the same request that has ended.

        Raises:
            BusyError: No slot is free, in total or for this key.
            WorkError: The server is shutting down, or the engine process exited right after its start.
        """
        if pick.pair is None and had_slot:
            return self._ask(as_loaded(pick.served), request, hear, key, None, had_slot=True)
        if pick.pair is None:
            return self.ask(as_loaded(pick.served), request, hear, key=key)
        made = PickedRequest(
            pick,
            lambda taken, hear_each: self._ask(
                as_loaded(taken.served), request, hear_each, key, taken, had_slot=had_slot or taken is not pick
            ),
            hear,
            self._balance,
            moved=moved,
            settled=self._movable.discard,
        )
        # Before it is sent: its first event may come before this returns.
        self._movable.add(made)
        try:
            made.begin()
        except BaseException:
            self._movable.discard(made)
            raise
        return made

    def ask(
        self, model: Served, request: TextRequest | PoolingRequest, hear: OnEvent, *, key: str | None = None
    ) -> Callable[[], None]:
        """Send a request for text or single-pass inference; returns a function that cancels it.

        Args:
            model: The model to load.
            request: The prompt, or the texts.
            hear: Called from another thread with each event, the last being `Ended`, `Pooled` or `Failed`, and not
                after cancellation. It must not block.
            key: The API key, for limits and fair scheduling; None for a local user.

        Raises:
            BusyError: No slot is free, in total or for this key.
            WorkError: The server is shutting down, or the engine process exited right after its start.
        """
        return self._ask(model, request, hear, key, None)

    def _ask(
        self,
        model: Served,
        request: TextRequest | PoolingRequest,
        hear: OnEvent,
        key: str | None,
        pick: EnginePick | None,
        *,
        had_slot: bool = False,
    ) -> Callable[[], None]:
        with self._lock:
            if self._is_closed:
                raise WorkError("the server is shutting down", expected="a running server", do="ask again later")
            if pick is None:  # the other engine answers where one of two has crashed
                self._crashes.check(model)
            slot = self._admission_queue.enter(key, had_one=had_slot)
            if pick is not None:
                num = num_choices_of(request)
                self._balance.enter(pick, num)
                slot.on_leave = partial(self._balance.leave, pick, num)
            try:
                gathers = pick is not None and pick.gathers
                cancel = None
                if self._child is not None:
                    cancel = self._child.ask(model, request, hear, slot, key, gathers=gathers)
                if cancel is None:
                    self._child = self._new_child()
                    cancel = self._child.ask(model, request, hear, slot, key, gathers=gathers)
                if cancel is None:
                    raise _ended_error()
            except BaseException:
                slot.leave(has_ended=False)
                raise
            return cancel

    def ask_loaded(
        self,
        model: Served,
        request: TextRequest | PoolingRequest,
        hear: OnEvent,
        *,
        owner: str,
        declined: Callable[[], None],
    ) -> Callable[[], None] | None:
        """Send a request of a job, which takes no slot of the queue and loads no model.

        Args:
            model: The model.
            request: The prompt, or the texts.
            hear: As of `ask`.
            owner: The job, for fair scheduling.
            declined: Called from another thread, in place of any event, where the model is not in memory any more.

        Returns:
            What cancels it; None where no process holds the model.
        """
        with self._lock:
            child = self._child
            if self._is_closed or child is None or not any(one.answers(model) for one in self.loaded):
                return None
            return child.ask(model, request, hear, NoSlot(), owner, declined=declined)

    def preload(self, model: Served) -> None:
        """Start the process and load a model, so that neither is waited for by the first request.

        Args:
            model: The model to load, as of `ask`.
        """
        with self._lock:
            if self._is_closed:
                return
            if self._child is None or self._child.has_ended:
                self._child = self._new_child()
            self._child.load(model, 0)

    def _new_child(self) -> _Child:
        child = _Child(self._settings, self._balance, self._crashes, has_session=self._has_session)
        child.num_vllm = min(self.num_vllm, self._settings.max_loaded_models)
        return child

    @property
    def pid(self) -> int | None:
        """The engine process; None if there is none at the moment."""
        child = self._child
        return None if child is None or child.has_ended else child.pid

    @property
    def loaded(self) -> tuple[LoadedModel, ...]:
        """The models in memory; empty without an engine process."""
        child = self._child
        return () if child is None or child.has_ended else child.loaded

    @property
    def num_under_way(self) -> int:
        """The number of running and waiting requests."""
        child = self._child
        return 0 if child is None else child.num_under_way

    def close(self) -> None:
        """Stop the child process; running requests fail. Waits until it has ended."""
        with self._lock:
            self._is_closed, child = True, self._child
        if child is not None:
            child.close()


class _Ask(OpenRequest):
    """A running request with its slot. declined: as of `InferenceClient.ask_loaded`."""

    def __init__(
        self,
        model: Served,
        request: TextRequest | PoolingRequest,
        hear: OnEvent,
        slot: Slot | NoSlot,
        declined: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(request, hear)
        self.model, self.slot, self.declined = model, slot, declined


class _Child(QueuedProcess):
    """One instance of the process."""

    def __init__(
        self,
        settings: Settings,
        balance: EngineBalance | None = None,
        crashes: CrashPauses | None = None,
        *,
        has_session: bool = True,
    ) -> None:
        self._settings, self._balance, self._has_session = settings, balance or EngineBalance(), has_session
        self._crashes = crashes or CrashPauses()
        self._asks: dict[str, _Ask] = {}
        self.num_vllm = 0
        self._last_asked = time.monotonic()
        self.loaded: tuple[LoadedModel, ...] = ()
        # Idleness is only noticed between two reads, so a read must not last longer than the idle limit.
        look_seconds = min(_LOOK_SECONDS, settings.serving_idle_seconds)
        super().__init__("serving", "the process that answers", look_seconds=look_seconds)

    def ask(
        self,
        model: Served,
        request: TextRequest | PoolingRequest,
        hear: OnEvent,
        slot: Slot | NoSlot,
        owner: str | None,
        *,
        declined: Callable[[], None] | None = None,
        gathers: bool = False,
    ) -> Callable[[], None] | None:
        """Like `InferenceClient.ask`, with `declined` like `ask_loaded`; None if the process has ended or is ending.

        gathers: As of `EnginePick`.
        """
        key, ask = uuid.uuid4().hex, _Ask(model, request, hear, slot, declined)
        with self.lock:
            if self.has_ended:
                return None
            self._asks[key] = ask
            self._last_asked = time.monotonic()
        # Queued outside the lock: if the process ends in between, `end` has already failed this request.
        wish = document_of(request) | ({} if declined is None else {"only_loaded": True})
        self.put({"ask": key, "owner": owner, "model": model.model_dump(mode="json")} | wish, gathers=gathers)

        def cancel() -> None:
            with self.lock:
                is_open = self._asks.pop(key, None) is not None
            if is_open:
                ask.slot.leave(has_ended=False)
                self.put({"cancel": key})
            # Even if it is no longer open: its last event may be in transit.
            ask.silence()

        return cancel

    def is_wanted(self, document: dict[str, Any]) -> bool:
        """Whether a request was not cancelled, or moved to the other engine, before it was sent."""
        with self.lock:
            return "ask" not in document or document["ask"] in self._asks

    @property
    def num_under_way(self) -> int:
        return len(self._asks)

    def load(self, model: Served, num_bytes: int) -> None:
        """Load a model in the background where there is room for it. num_bytes: what it is known to take; else 0."""
        self.put({"load": model.model_dump(mode="json"), "num_bytes": num_bytes})

    def start(self) -> ChildProcess:
        document = {
            "most_models": self._settings.max_loaded_models,
            "memory_bytes": self._settings.serving_memory_bytes,
            "num_vllm": self.num_vllm,
            "num_threads": self._settings.serving_threads or usable_threads(),
            "has_threads": self._settings.serving_threads > 0,
            "settings": self._settings.engine_settings.model_dump(mode="json"),
            "rates_folder": str(self._settings.rates_folder),
            "proofs_folder": str(self._settings.serving_proofs_folder),
            "imports_folder": str(self._settings.imports_folder),
        }
        # A separate session: the server has lowered the priority of its own session.
        return ChildProcess(_SERVE, document, log="inherit", has_session=self._has_session)

    def hear(self, event: Any) -> None:
        if isinstance(event, dict) and "unavailable" in event:
            self._balance.note_unavailable(Served.model_validate(event["unavailable"]), event["why"])
        elif isinstance(event, dict) and "declined" in event:
            with self.lock:
                ask = self._asks.pop(event["declined"], None)
            if ask is not None and ask.declined is not None:
                ask.declined()
        elif isinstance(event, dict):
            self.loaded = tuple(LoadedModel.model_validate(one) for one in event["loaded"])
            self._crashes.note_loaded(self.loaded)
        else:
            for key, document in event:
                self._tell(key, stream_event.validate_python(document))

    def is_done(self, *, is_silent: bool) -> bool:
        """Whether the process has been idle for long; from then on it accepts no requests."""
        if not is_silent:
            return False
        with self.lock:
            is_idle = not self._asks and time.monotonic() - self._last_asked >= self._settings.serving_idle_seconds
            # Decided under the lock that `ask` takes: a request either keeps this child alive or starts another one.
            self.has_ended = self.has_ended or is_idle
            return is_idle

    def _tell(self, key: str, event: Event) -> None:
        with self.lock:
            ask = self._asks.get(key)
            if ask is None:  # cancelled in the meantime
                return
            is_last = ask.ends_with(event)
            if is_last:
                del self._asks[key]
                self._last_asked = time.monotonic()
        if is_last:
            ask.slot.leave(has_ended=True)
        ask.tell(event)

    def end(self) -> Callable[[], None]:
        with self.lock:
            is_crash = not (self.has_ended or self.is_closed)
            self.has_ended = True
            left, self._asks = self._asks, {}
        # Before the requests get their error: those that have not begun go to an engine that has not failed.
        self._balance.note_end(is_crash=is_crash)
        if is_crash:
            loading = [ask.model for ask in left.values() if not any(one.answers(ask.model) for one in self.loaded)]
            self._crashes.note_end(loading)

        def fail_rest() -> None:
            for ask in left.values():
                ask.slot.leave(has_ended=False)
            for ask in left.values():
                ask.tell(Failed.of(_ended_error(), is_of_engine=True))

        return fail_rest


def _ended_error() -> WorkError:
    return WorkError(
        "the process that answers has ended in the middle of its work",
        expected="an answer",
        do="ask again: it is started again; if it ends again, memory may be too small for the model",
    )
