"""The process that holds models and generates text; `inference_client` starts it and reads its events.

Requests are {"ask": ID, "owner": KEY, "model": Served, "request": TextRequest}, the same with
"pool": PoolingRequest in the place of "request", and {"cancel": ID}; events are [[ID, StreamEvent], ...]. With
"only_loaded" a request of a model that is not in memory is an event {"declined": ID}, and nothing is loaded. Requests
of one model are prepared in parallel, scheduled fairly between owners and in order of arrival per owner, and batched
regardless of their adapters; several models take turns, one step each (`engine_thread`). Models that are adapters of
one base share it in memory. When a model is requested and there is no slot or memory, the least recently used model is
unloaded; a busy one takes no new requests and is unloaded when idle. The process ends when its parent does, or closes
the channel. When models are loaded or unloaded, an event lists the loaded ones: {"loaded": [LoadedModel, ...]}.

{"load": Served, "num_bytes": INT} loads a model in the background, where nothing has to be unloaded for it. An engine
for which there is no room then, or that has failed, is an event: {"unavailable": Served, "why": "memory" or "failed"}.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.child_process.channel import Channel
from luthier.core.errors import LuthierError
from luthier.core.stream import ENGINE_DEFAULTS, EngineSettings, Failed, LoadedModel, Served, StreamEvent
from luthier.core.system.free_cores import FreeCores
from luthier.core.system.libraries import import_libraries, keep_import_structure
from luthier.core.system.process_setup import start_daemon, wait_longer
from luthier.features.serving.core_sharing import CoreSharing
from luthier.features.serving.engine_balance import Unavailable
from luthier.features.serving.engine_thread import Ask, EngineContext, EngineThread, TurnLock, defect, too_large
from luthier.features.serving.memory_budget import MemoryBudget, read_budget, vllm_share, weight_bytes
from luthier.features.serving.model_facts import settled_template
from luthier.features.serving.open_request import request_of

if TYPE_CHECKING:
    from luthier.core.ports import StreamEngine
    from luthier.features.models.resolve import Precision
    from luthier.ml.inference.vllm.adapters import AdapterProof


def split(served: Served, precision: Callable[[], Precision]) -> tuple[Served, str | None]:
    """The model to open as an engine, and the adapter folder to load into it.

    Defaults (precision, template) are resolved here, so that requests for a base with and without an adapter share one
    engine. An adapter that cannot share its base is part of the opened model.

    Args:
        served: What is to be served.
        precision: Returns the fastest precision of this machine; called if the model has none.

    Raises:
        ModelSourceError: The adapter cannot be read.
    """
    # Models that differ in their adapter have different fallbacks, and share a base all the same.
    served = served.model_copy(update={"fallback": None, "hands_over": (), "rates": ()})
    # llama.cpp and vLLM load every adapter over a shared base by themselves.
    if served.engine != "transformers":
        return served.model_copy(update={"adapter_path": None}), served.adapter_path
    settled = served.model_copy(
        update={
            "precision": served.precision or precision(),
            "template": settled_template(served.path, served.template),
        }
    )
    if served.adapter_path is None:
        return settled, None
    from luthier.ml.inference.adapter_names import adapter_stamp
    from luthier.ml.inference.low_rank import why_not_shared

    if why_not_shared(served.adapter_path):
        # Files that were written again are another model: the loaded one has the old weights.
        return settled.model_copy(update={"adapter_stamp": adapter_stamp(Path(served.adapter_path))}), None
    return settled.model_copy(update={"adapter_path": None}), served.adapter_path


def open_engine(
    served: Served,
    settings: EngineSettings = ENGINE_DEFAULTS,
    *,
    proofs_folder: Path | None = None,
    memory_share: float | None = None,
) -> StreamEngine:
    """The engine of a model, loaded. A LuthierError says why a model cannot be.

    Args:
        served: The model.
        settings: Of the engine.
        proofs_folder: Where what adapters in vLLM are compared with is kept; None compares them with their base alone.
        memory_share: The part of a card that vLLM may reserve; None leaves it to vLLM.
    """
    from luthier.ml.inference.stream_registry import open_stream_engine, unused_settings

    if served.engine == "transformers":
        import_libraries()
    if unused := unused_settings(served.engine, settings):
        sys.stderr.write(f"luthier: the engine {served.engine} of {served.path} does not use {', '.join(unused)}\n")
    served = served.model_copy(update={"settings": settings})
    if served.engine == "vllm" and proofs_folder is not None:
        from luthier.ml.inference.vllm import engine

        return engine.open_stream_engine(served, _adapter_proof(served, proofs_folder), memory_share)
    return open_stream_engine(served)


def _adapter_proof(served: Served, folder: Path) -> AdapterProof:
    from luthier.features.serving.memory_budget import host_bytes
    from luthier.ml.export.vllm_adapter_proof import TransformersProof
    from luthier.ml.inference.models.structure import read_json
    from luthier.ml.inference.models.weights import count_parameters

    num = count_parameters(Path(served.path), read_json(Path(served.path) / "config.json"))
    return TransformersProof(served, folder, memory_bytes=host_bytes(), needed_bytes=4 * num)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request without an engine. model: the model to open for it; only_loaded: or to decline it."""

    model: Served
    ask: Ask
    only_loaded: bool = False


def _is_of_earlier_files(known: Served, model: Served) -> bool:
    """Whether an engine holds a model as its files were before they were written again."""
    now = {"sha256": model.sha256, "adapter_stamp": model.adapter_stamp}
    return known != model and known.model_copy(update=now) == model


class Scheduler:
    """Hands requests to engine threads, opens engines, and closes idle ones.

    Args:
        tell: Sends events; must be thread-safe.
        most_models: Maximum number of open engines.
        memory_bytes: Memory limit of all engines together; `budget`, set before `work`, replaces it.
        precision: The fastest precision of this machine, for models without an explicit one.
        open_engine: Loads a model.
        tell_loaded: Called with the loaded models when they change.
        tell_unavailable: Called with a model for which there is no room beside others, or whose engine has failed.
        tell_declined: Called with a request that asks for a loaded model alone, whose model is not loaded.
        sharing: As of `EngineContext`; by default engines share one thread.
    """

    def __init__(
        self,
        tell: Callable[[Sequence[tuple[str, StreamEvent]]], None],
        *,
        most_models: int,
        memory_bytes: int,
        precision: Callable[[], Precision],
        open_engine: Callable[[Served], StreamEngine] = open_engine,
        tell_loaded: Callable[[tuple[LoadedModel, ...]], None] = lambda _: None,
        tell_unavailable: Callable[[Served, Unavailable], None] = lambda *_: None,
        tell_declined: Callable[[str], None] = lambda _: None,
        sharing: CoreSharing | None = None,
    ) -> None:
        self._tell, self._most_models, self.budget = tell, most_models, MemoryBudget(memory_bytes)
        self._precision = precision
        self._tell_loaded, self._loaded = tell_loaded, tuple[LoadedModel, ...]()
        self._tell_unavailable, self._tell_declined = tell_unavailable, tell_declined
        self._own_of: dict[Served, tuple[str, str]] = {}  # of a copy: path and digest of the model it replaces
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._waiting: list[_Waiting] = []
        self._engine_threads: OrderedDict[Served, EngineThread] = OrderedDict()  # least recently used first
        # Only the scheduler's thread changes it, under this lock; other threads take the lock to read it. Even `list`
        # of an OrderedDict hashes its keys, during which another thread may run.
        self._engine_threads_lock = threading.Lock()
        self._thread_of_request: dict[str, EngineThread] = {}
        self._lacking: tuple[EngineThread, int] | None = None  # memory that an engine needs to load an adapter
        self._engine_context = EngineContext(
            open_engine=open_engine,
            tell=tell,
            wake=lambda: self.hear({}),
            adapter_bytes=lambda path: 2 * weight_bytes(path),  # adapters in use are held twice
            has_room=self._has_room,
            is_alone=lambda: len(self._engine_threads) < 2,
            turn_lock=TurnLock(),
            sharing=sharing or CoreSharing(),
        )

    def hear(self, said: dict[str, Any]) -> None:
        """Accept a line of the parent, from any thread; an empty one triggers scheduling."""
        self._inbox.put(said)

    def work(self) -> None:
        """Process messages forever."""
        while True:
            self.work_once()

    def work_once(self) -> None:
        """Wait for messages and process them."""
        said = [self._inbox.get()]
        while not self._inbox.empty():
            # All pending messages are read before dispatching: a cancel that has arrived saves loading its model. This
            # thread is the only reader, so `empty` cannot turn stale.
            said.append(self._inbox.get())
        for one in said:
            if "cancel" in one:
                self._cancel(one["cancel"])
            elif "ask" in one:
                self._read(one)
            elif "load" in one:
                self._load(Served.model_validate(one["load"]), one["num_bytes"])
        self._sweep()
        self._hand_on()
        self._say_loaded()

    def _say_loaded(self) -> None:
        open_ones = [
            (served, engine_thread)
            for served, engine_thread in self._engine_threads.items()
            if engine_thread.is_open and not engine_thread.is_closing and not engine_thread.has_closed
        ]
        loaded = tuple(
            LoadedModel(served=served, decoding=engine_thread.decoding) for served, engine_thread in open_ones
        )
        # As sets: each use changes the order, which is not a change.
        if set(loaded) != set(self._loaded):
            self._loaded = loaded
            self._tell_loaded(loaded)

    def _read(self, said: dict[str, Any]) -> None:
        key = said["ask"]
        try:
            request = request_of(said)
            model, adapter = self._split(Served.model_validate(said["model"]))
            ask = Ask(key, request, adapter, said.get("owner"))
            self._waiting.append(_Waiting(model, ask, bool(said.get("only_loaded"))))
        except LuthierError as error:
            self._fail(key, error)
        except Exception as error:  # noqa: BLE001 - one ask must not end the answers of all others
            self._fail(key, defect(error))

    def _split(self, served: Served) -> tuple[Served, str | None]:
        model, adapter = split(served, self._precision)
        if served.fallback is not None:
            self._own_of[model] = (served.fallback.path, served.fallback.sha256)
        return model, adapter

    def _load(self, served: Served, num_bytes: int) -> None:
        """Open an engine that no request waits for; only where nothing has to be closed for it."""
        try:
            model, _ = self._split(served)
        except LuthierError as error:
            sys.stderr.write(f"luthier: {served.path} was not loaded in the background: {error.came}\n")
            self._tell_unavailable(served, "failed")
            return
        if model in self._engine_threads:
            return
        num_bytes = max(num_bytes, weight_bytes(model.path) + weight_bytes(model.adapter_path))
        if self._is_place(self._taken() | {model: num_bytes}, model):
            self._open(model, num_bytes)
        else:
            self._tell_unavailable(model, "memory")

    def _cancel(self, key: str) -> None:
        self._waiting = [one for one in self._waiting if one.ask.key != key]
        if (engine_thread := self._thread_of_request.get(key)) is not None:
            engine_thread.cancel(key)
            del self._thread_of_request[key]

    def _sweep(self) -> None:
        """Remove closed engines, and close idle ones that exceed the budget."""
        for model, engine_thread in list(self._engine_threads.items()):
            if engine_thread.has_closed:
                with self._engine_threads_lock:
                    del self._engine_threads[model]
                if engine_thread.failure is not None:
                    self._tell_unavailable(model, "failed")
                self._thread_of_request = {
                    key: own for key, own in self._thread_of_request.items() if own is not engine_thread
                }
        engine_threads = list(self._engine_threads.values())
        # The most recently used one stays even over the budget: the next request would only reload it. Where an engine
        # lacks memory for an adapter, that is the one that stays: the last request may have been for another one.
        kept, lacking = self._lacking or (engine_threads[-1] if engine_threads else None, 0)
        for model, engine_thread in list(self._engine_threads.items()):
            # What is closing counts as free: else all idle ones would be closed before the first has ended.
            if not self.budget.is_over(self._taken(kept, lacking, with_closing=False), model):
                continue
            if engine_thread is not kept and engine_thread.is_idle and not engine_thread.is_closing:
                engine_thread.close()
        # Ended requests are dropped in bulk: engines do not report single ends to the scheduler.
        if len(self._thread_of_request) > 1024:
            self._thread_of_request = {key: own for key, own in self._thread_of_request.items() if own.is_writing(key)}

    def _hand_on(self) -> None:
        """Dispatch requests to engines in order of arrival; those that wait for a slot stay queued."""
        staying: list[_Waiting] = []
        leaving: set[Served] = set()
        if self._lacking is not None:
            # It waits for memory of other engines, which finish their running requests and then close.
            leaving = {model for model, own in self._engine_threads.items() if own is not self._lacking[0]}
            self._lacking = None
        for one in self._waiting:
            engine_thread = self._engine_threads.get(one.model)
            # Not queued where its model makes room for another: it would have it loaded again, in place of that one.
            if one.only_loaded and (engine_thread is None or engine_thread.is_closing or one.model in leaving):
                self._tell_declined(one.ask.key)
                continue
            if engine_thread is None:
                try:
                    engine_thread = self._opened(one.model, leaving)
                except LuthierError as error:
                    self._tell([(one.ask.key, Failed.of(error, is_of_engine=True))])
                    continue
            if engine_thread is None or engine_thread.is_closing or one.model in leaving:
                staying.append(one)
                continue
            if not engine_thread.ask(one.ask):  # it has just closed: the next round, which it triggers, detects that
                staying.append(one)
                continue
            with self._engine_threads_lock:
                self._engine_threads.move_to_end(one.model)
            self._thread_of_request[one.ask.key] = engine_thread
        self._waiting = staying

    def _opened(self, model: Served, leaving: set[Served]) -> EngineThread | None:
        """Open the engine; None if there is no slot yet: then others are being closed for it.

        leaving: engines that take no new requests because their slot is needed.
        """
        num_bytes = weight_bytes(model.path) + weight_bytes(model.adapter_path)
        if num_bytes > self.budget.limit_of(model):
            raise too_large(model, num_bytes)
        earlier = [(known, own) for known, own in self._engine_threads.items() if _is_of_earlier_files(known, model)]
        for known, own in earlier:
            if own.is_idle and not own.is_closing:
                own.close()
            elif not own.is_idle:
                leaving.add(known)
        if earlier:  # nobody asks it any more, and vLLM takes nearly all memory of a GPU
            return None
        if self._is_place(self._taken() | {model: num_bytes}, model):
            return self._open(model, num_bytes)
        by_use = [(known, own) for known, own in self._engine_threads.items() if not own.is_closing]
        # Engines that are closing count as free, so that a second round does not evict more than needed.
        gone = [own for known, own in self._engine_threads.items() if own.is_closing or known in leaving]

        def staying() -> dict[Served, int]:
            held = {known: own.num_bytes for known, own in self._engine_threads.items() if own not in gone}
            return held | {model: num_bytes}

        # Where memory is short, those of another memory make no room. The sort is stable: idle engines first, least
        # recently used first.
        held = staying()
        is_short = self.budget.is_over(held, model)
        victims = sorted(
            (pair for pair in by_use if pair[0] not in leaving),
            key=lambda pair: (is_short and not self.budget.makes_room(pair[0], held, model), not pair[1].is_idle),
        )
        while not self._is_place(staying(), model):
            known, victim = victims.pop(0)
            gone.append(victim)
            if victim.is_idle:
                victim.close()
            else:
                # A busy engine finishes its requests but takes no new ones; it is closed in a later round, once idle.
                leaving.add(known)
        return None

    def _open(self, model: Served, num_bytes: int) -> EngineThread:
        engine_thread = EngineThread(model, self._engine_context, num_bytes)
        with self._engine_threads_lock:
            self._engine_threads[model] = engine_thread
        return engine_thread

    def _is_place(self, taken: Mapping[Served, int], model: Served) -> bool:
        """Whether a model may be open beside others; a copy beside the model that it replaces is no further model.

        taken: the memory of all of them in bytes.
        """
        own = {(one.path, one.sha256) for one in taken if one not in self._own_of}
        num_models = sum(self._own_of.get(one) not in own for one in taken)
        return num_models <= self._most_models and not self.budget.is_over(taken, model)

    def _taken(
        self, lacking: EngineThread | None = None, num_lacking: int = 0, *, with_closing: bool = True
    ) -> dict[Served, int]:
        """The memory of each open model in bytes. lacking: an engine that needs `num_lacking` more."""
        with self._engine_threads_lock:
            engine_threads = list(self._engine_threads.items())
        return {
            model: one.num_bytes + (num_lacking if one is lacking else 0)
            for model, one in engine_threads
            if with_closing or not one.is_closing
        }

    def _has_room(self, engine_thread: EngineThread, num_bytes: int) -> bool:
        """Whether an adapter may be loaded; called from engine threads."""
        if not self.budget.is_over(self._taken(engine_thread, num_bytes), engine_thread.served):
            return True
        # Written by engine threads, read by the scheduler's: a single assignment, the last one wins. An engine that
        # still lacks memory reports it again on its next attempt.
        self._lacking = (engine_thread, num_bytes)
        self.hear({})
        return False

    def _fail(self, key: str, error: LuthierError) -> None:
        self._tell([(key, Failed.of(error))])


def serve(document: dict[str, Any], channel: Channel) -> None:
    """Serve in a child process until the parent exits.

    Args:
        document: `most_models` and `memory_bytes` (0: what this machine can spare) that are loaded at once,
            `num_vllm` (as for `vllm_share`), `num_threads`, `has_threads` (whether they were set, and count for every
            engine), `settings` (of the engines), `rates_folder`, where the home keeps how fast this machine is (the
            precision of a base without one of its own follows), `proofs_folder` (of adapters in vLLM), and
            `imports_folder`, as `keep_import_structure` takes it.
        channel: of the child process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server: it closes the channel when it has finished

    def tell(events: Sequence[tuple[str, StreamEvent]]) -> None:
        # Joined as strings: pydantic serialises each event directly, without an intermediate document.
        parts = ",".join(f'["{key}",{event.model_dump_json()}]' for key, event in events)
        channel.emit_json(f"[{parts}]")

    @cache
    def precision() -> Precision:
        from luthier.platform.home.hardware_benchmark import hardware_in

        return hardware_in(Path(document["rates_folder"])).precision

    def tell_loaded(models: tuple[LoadedModel, ...]) -> None:
        channel.emit({"loaded": [model.model_dump(mode="json") for model in models]})

    def tell_unavailable(model: Served, why: Unavailable) -> None:
        channel.emit({"unavailable": model.model_dump(mode="json"), "why": why})

    cores = FreeCores(document["num_threads"])

    def set_threads(num_threads: int) -> None:
        """Let the calling thread's products use so many threads."""
        import torch

        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)

    scheduler = Scheduler(
        tell,
        most_models=document["most_models"],
        memory_bytes=document["memory_bytes"],
        precision=precision,
        open_engine=partial(
            open_engine,
            settings=EngineSettings.model_validate(document["settings"]),
            proofs_folder=Path(document["proofs_folder"]),
            memory_share=vllm_share(document["num_vllm"]),
        ),
        tell_loaded=tell_loaded,
        tell_unavailable=tell_unavailable,
        tell_declined=lambda key: channel.emit({"declined": key}),
        sharing=CoreSharing(lambda: cores.count, set_threads),
    )
    if document["has_threads"]:
        # llama.cpp takes as many as this says, else one a core.
        os.environ["OMP_NUM_THREADS"] = str(document["num_threads"])

    def listen() -> None:
        """Read messages of the parent until it exits; then end this process, whatever it is doing."""
        for request in channel.requests():
            scheduler.hear(request)
        # Not sys.exit: that would end only this thread, while the main thread may be inside a native kernel.
        os._exit(0)

    start_daemon(listen, "parent")

    wait_longer()  # before torch is loaded
    # After the listener has started: it takes seconds, during which the exit of the parent must be noticed.
    scheduler.budget = _budget_with_torch(document)
    scheduler.work()


def _budget_with_torch(document: dict[str, Any]) -> MemoryBudget:
    """Load torch, which knows the accelerators, and read the limits of models in memory."""
    keep_import_structure(Path(document["imports_folder"]))
    import_libraries(("torch",))
    import torch

    from luthier.ml.inference.accelerator import device_memory_bytes

    torch.set_num_threads(document["num_threads"])
    return read_budget(document["memory_bytes"], device_memory_bytes(), document["num_vllm"])
