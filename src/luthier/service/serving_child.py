"""The process that holds models and writes answers; `model_server` starts it and listens.

    python -m luthier.service.serving_child SOCKET_FD PARENT_PID MOST_MODELS NUM_THREADS

Over the socket come lines of JSON: {"ask": ID, "model": Served, "request": TextRequest} and {"cancel": ID}; lines go
back: {"id": ID, "event": StreamEvent}. Asks are taken up in the order in which they come. Answers of one model are
written together, those of several models in turn, token by token. A model is let go when another is asked for and there
is no place; one that is still writing is waited for. The process ends when its parent does, or closes the socket.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import LuthierError, WorkError
from luthier.core.parent_death import dying_with_parent
from luthier.core.stream import Failed, Served, TextRequest

if TYPE_CHECKING:
    from luthier.engines.streaming import Prepared, StreamingEngine


@dataclass(slots=True)
class _Waiting:
    """An ask that was not taken up yet. prepared: once its model was there to read it."""

    key: str
    model: Served
    asked: TextRequest
    prepared: Prepared | None = None


class Desk:
    """Takes asks up, has them written, and lets models go. open_engine: loads one; tell: sends an event."""

    def __init__(self, most_models: int, connection: socket.socket) -> None:
        self._most_models, self._connection = most_models, connection
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._waiting: deque[_Waiting] = deque()
        self._engines: OrderedDict[Served, StreamingEngine] = OrderedDict()

    def listen(self) -> None:
        """Read what the parent says, until it has gone: then end this process, whatever it is doing."""
        with self._connection.makefile("rb") as lines:
            for line in lines:
                self._inbox.put(json.loads(line))
        os._exit(0)

    def work(self) -> None:
        """For ever: take up, write a token of every answer, tell."""
        while True:
            self._read_inbox(wait=not self._waiting and not self._is_writing())
            while self._waiting and self._take_up(self._waiting[0]):
                self._waiting.popleft()
            for model, engine in list(self._engines.items()):
                if engine.keys:
                    self._write(model, engine)

    def _is_writing(self) -> bool:
        return any(engine.keys for engine in self._engines.values())

    def _read_inbox(self, *, wait: bool) -> None:
        while wait or not self._inbox.empty():
            said = self._inbox.get()
            wait = False
            if "cancel" in said:
                self._cancel(said["cancel"])
            else:
                asked = TextRequest.model_validate(said["request"])
                self._waiting.append(_Waiting(said["ask"], Served.model_validate(said["model"]), asked))

    def _cancel(self, key: str) -> None:
        self._waiting = deque(one for one in self._waiting if one.key != key)
        for engine in self._engines.values():
            engine.cancel(key)

    def _take_up(self, one: _Waiting) -> bool:
        """Begin to write; false where it has to wait. One that cannot be written is told so, and is done with."""
        try:
            if not self._has_place_for(one.model):
                return False
            engine = self._engine(one.model)
            one.prepared = one.prepared or engine.prepare(one.asked)
            if not engine.has_room_for(one.prepared):
                return False
            self._tell(engine.start(one.key, one.prepared))
        except LuthierError as error:
            self._fail([one.key], error)
        except Exception as error:  # noqa: BLE001 - one ask must not end the answers of all others
            self._forget(one.model)
            self._fail([one.key], _unexpected(error))
        return True

    def _has_place_for(self, model: Served) -> bool:
        """Whether the model is there or can be loaded; an idle one, the longest unused first, is let go for it."""
        if model in self._engines or len(self._engines) < self._most_models:
            return True
        idle = next((known for known, engine in self._engines.items() if not engine.keys), None)
        if idle is None:
            return False
        self._forget(idle)
        return True

    def _engine(self, model: Served) -> StreamingEngine:
        if model not in self._engines:
            self._engines[model] = _open(model)
        self._engines.move_to_end(model)
        return self._engines[model]

    def _write(self, model: Served, engine: StreamingEngine) -> None:
        try:
            self._tell(engine.step())
        except Exception as error:  # noqa: BLE001 - the other models go on
            keys = [str(key) for key in engine.keys]
            self._forget(model)
            self._fail(keys, error if isinstance(error, LuthierError) else _unexpected(error))

    def _forget(self, model: Served) -> None:
        if (engine := self._engines.pop(model, None)) is not None:
            keys = [str(key) for key in engine.keys]
            engine.close()
            self._fail(keys, WorkError("the model was let go", expected="an answer", do="ask again"))

    def _fail(self, keys: list[str], error: LuthierError) -> None:
        self._tell([(key, Failed(error=error.as_json())) for key in keys])

    def _tell(self, told: list[tuple[Any, Any]]) -> None:
        lines = [json.dumps({"id": key, "event": event.model_dump(mode="json")}) + "\n" for key, event in told]
        if lines:
            self._connection.sendall("".join(lines).encode())


def _open(model: Served) -> StreamingEngine:
    from luthier.engines.streaming import StreamingEngine
    from luthier.engines.transformers_engine import TransformersEngine

    device, precision = _machine(model.precision)
    engine = TransformersEngine.open(
        model.path,
        adapter_path=model.adapter_path,
        template=model.template,
        dtype=precision,
        device=device,
        quantisation=model.quantisation,
    )
    return StreamingEngine(engine)


def _machine(
    precision: Literal["float32", "bfloat16"] | None,
) -> tuple[str, Literal["float32", "bfloat16"]]:
    """The device of this machine, and the precision asked for or else the one that is fastest here."""
    if precision is None:
        from luthier.plan import hardware

        machine = hardware.measure()
        return machine.device, machine.precision
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu"), precision


def _unexpected(error: Exception) -> WorkError:
    sys.stderr.write("".join(traceback.format_exception(error)))
    return WorkError(
        f"the model failed while it wrote: {type(error).__name__}",
        expected="an answer",
        do="ask again; the log of the server says more",
    )


def main(descriptor: int, parent: int, most_models: int, num_threads: int) -> None:
    """Serve until the parent has gone."""
    dying_with_parent()()
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server: it closes the socket when it has finished
    connection = socket.socket(fileno=descriptor)
    desk = Desk(most_models, connection)
    threading.Thread(target=desk.listen, daemon=True).start()

    from luthier.core.threads import wait_briefly

    wait_briefly()
    import torch

    torch.set_num_threads(num_threads)
    desk.work()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
