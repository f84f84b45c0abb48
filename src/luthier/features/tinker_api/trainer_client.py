"""The client of the process that trains: thread-safe requests, whose answers come by callback.

One child process (`trainer_process`), started by the first request. It ends with this process, however that ends, or
when no client has anything in it any more. When it crashes, all waiting requests fail, and so does everything that was
in its memory; the next request starts a new one. This process never loads torch.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from luthier.core.child_process.process import ChildProcess
from luthier.core.errors import LuthierError, WorkError, error_from
from luthier.core.system.process_setup import usable_threads
from luthier.platform.home.settings import Settings
from luthier.platform.processes.queued_process import QueuedProcess

OnAnswer = Callable[[dict[str, Any] | None, LuthierError | None], None]
"""Called with the result, or with the error."""

_SERVE: Final = "luthier.features.tinker_api.trainer_process:serve"
_LOOK_SECONDS: Final = 2.0


class TrainerClient:
    """Sends requests to the process that trains.

    Args:
        settings: of the home.
        tick: called every few seconds while the process runs; returns whether it is still needed.
        ended: called when the process has ended, before its requests fail.
    """

    def __init__(self, settings: Settings, *, tick: Callable[[], bool], ended: Callable[[], None]) -> None:
        self._settings, self._tick, self._ended = settings, tick, ended
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._is_closed = False

    def ask(self, request: dict[str, Any], done: OnAnswer | None) -> None:
        """Send a request; `done` is called from another thread and must not block for long. None: no answer comes.

        Raises:
            WorkError: the server is shutting down.
        """
        with self._lock:
            if self._is_closed:
                raise WorkError("the server is shutting down", expected="a running server", do="try again later")
            if self._child is None or not self._child.ask(request, done):
                self._child = _Child(self._settings, self._tick, self._ended)
                self._child.ask(request, done)

    @property
    def pid(self) -> int | None:
        """The process; None if there is none at the moment."""
        child = self._child
        return None if child is None or child.has_ended else child.pid

    def close(self) -> None:
        """End the process; its requests fail."""
        with self._lock:
            self._is_closed, child = True, self._child
        if child is not None:
            child.close()


class _Child(QueuedProcess):
    """One instance of the process."""

    def __init__(self, settings: Settings, tick: Callable[[], bool], ended: Callable[[], None]) -> None:
        self._settings, self._tick, self._ended = settings, tick, ended
        self._asks: dict[str, OnAnswer] = {}
        self._looked = time.monotonic()
        super().__init__("tinker", "the process that trains for clients", look_seconds=_LOOK_SECONDS)

    def ask(self, request: dict[str, Any], done: OnAnswer | None) -> bool:
        """Whether it takes the request: not where it has ended."""
        key = uuid.uuid4().hex
        with self.lock:
            if self.has_ended:
                return False
            if done is not None:
                self._asks[key] = done
        # Behind the lock: if the process ends in between, `end` has already failed this request.
        self.put(request | {"id": key})
        return True

    def start(self) -> ChildProcess:
        document = {
            "num_threads": usable_threads(),
            "rates_folder": str(self._settings.rates_folder),
            "imports_folder": str(self._settings.imports_folder),
        }
        # A separate session: the server has lowered the priority of its own session.
        return ChildProcess(_SERVE, document, log="inherit", has_session=True)

    def is_done(self, *, is_silent: bool) -> bool:  # noqa: ARG002 - it is asked at the same pace while it is busy
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        return not self._tick() and self.is_unused()

    def is_unused(self) -> bool:
        """Whether nothing waits for it; from then on it accepts no requests."""
        with self.lock:
            self.has_ended = self.has_ended or not self._asks
            return self.has_ended

    def hear(self, event: dict[str, Any]) -> None:
        with self.lock:
            done = self._asks.pop(event["id"], None)
        if done is None:
            return
        if "error" in event:
            done(None, error_from(event["error"]))
        else:
            done(event["result"], None)

    def end(self) -> Callable[[], None]:
        # First: no request of a client whose weights are lost may go to the next process. One that was not needed any
        # more had no clients, and those that there are by now are in the next process already.
        if not self.has_ended:
            self._ended()
        with self.lock:
            self.has_ended = True
            left, self._asks = self._asks, {}

        def fail_rest() -> None:
            for done in left.values():
                done(None, process_ended())

        return fail_rest


def process_ended() -> WorkError:
    """The error of requests whose process is gone."""
    return WorkError(
        "the process that trains has ended, with the weights of this client in its memory",
        expected="a process that runs as long as its clients; mostly memory ran out",
        do="make a client from the last saved state: create_training_client_from_state_with_optimizer(path)",
    )
