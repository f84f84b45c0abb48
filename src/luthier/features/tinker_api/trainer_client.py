"""The client of the process that trains: thread-safe requests, whose answers come by callback.

One child process (`trainer_process`), started by the first request. It ends with this process, however that ends, or
when no client has anything in it any more. When it crashes, all waiting requests fail, and so does everything that was
in its memory; the next request starts a new one. This process never loads torch.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from luthier.core.child_process.process import ChildProcess
from luthier.core.errors import LuthierError, WorkError, error_from
from luthier.core.system.process_setup import start_daemon, usable_threads
from luthier.platform.home.settings import Settings

OnAnswer = Callable[[dict[str, Any] | None, LuthierError | None], None]
"""Called with the result, or with the error."""

_SERVE: Final = "luthier.features.tinker_api.trainer_process:serve"
_LOOK_SECONDS: Final = 2.0
_CLOSE_SECONDS: Final = 10.0


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


class _Child:
    """One instance of the process, with a thread that starts and reads it, and one that writes to it."""

    def __init__(self, settings: Settings, tick: Callable[[], bool], ended: Callable[[], None]) -> None:
        self._settings, self._tick, self._ended = settings, tick, ended
        self._lock = threading.Lock()
        self._asks: dict[str, OnAnswer] = {}
        self._outbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._process: ChildProcess | None = None
        self._is_closed = self.has_ended = False
        # The kernel kills the child when the thread that started it ends, so that thread must live as long.
        self._reader = start_daemon(self._live, "tinker")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ask(self, request: dict[str, Any], done: OnAnswer | None) -> bool:
        """Whether it takes the request: not where it has ended."""
        key = uuid.uuid4().hex
        with self._lock:
            if self.has_ended:
                return False
            if done is not None:
                self._asks[key] = done
        # Behind the lock: if the process ends in between, `_end` has already failed this request.
        self._outbox.put(request | {"id": key})
        return True

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.hang_up()
        self._reader.join(_CLOSE_SECONDS)

    def _live(self) -> None:
        try:
            process = self._start()
            with self._lock:
                self._process = process
                if self._is_closed:
                    process.hang_up()
            # Requests are sent from a separate thread: a busy process must not block the server's threads.
            start_daemon(partial(self._send_all, process), "tinker-requests")
            self._hear_all(process)
        except OSError as error:
            sys.stderr.write(f"luthier: the process that trains for clients cannot be started or heard: {error}\n")
        finally:
            self._end()

    def _start(self) -> ChildProcess:
        document = {
            "num_threads": usable_threads(),
            "rates_folder": str(self._settings.rates_folder),
            "imports_folder": str(self._settings.imports_folder),
        }
        # A separate session: the server has lowered the priority of its own session.
        return ChildProcess(_SERVE, document, log="inherit", has_session=True)

    def _hear_all(self, process: ChildProcess) -> None:
        looked = time.monotonic()
        while True:
            messages = process.receive(_LOOK_SECONDS)
            if not messages and process.has_hung_up:
                return
            for message in messages:
                if "event" not in message:  # it failed; see its log
                    return
                self._hear(message["event"])
            if time.monotonic() - looked >= _LOOK_SECONDS:
                looked = time.monotonic()
                if not self._tick() and self._is_unused():
                    return

    def _is_unused(self) -> bool:
        """Whether nothing waits for it; from then on it accepts no requests."""
        with self._lock:
            self.has_ended = self.has_ended or not self._asks
            return self.has_ended

    def _hear(self, event: dict[str, Any]) -> None:
        with self._lock:
            done = self._asks.pop(event["id"], None)
        if done is None:
            return
        if "error" in event:
            done(None, error_from(event["error"]))
        else:
            done(event["result"], None)

    def _end(self) -> None:
        # First: no request of a client whose weights are lost may go to the next process. One that was not needed any
        # more had no clients, and those that there are by now are in the next process already.
        if not self.has_ended:
            self._ended()
        with self._lock:
            self.has_ended = True
            left, self._asks = self._asks, {}
        self._outbox.put(None)
        if self._process is not None:
            self._process.kill()
            self._process.close()
        for done in left.values():
            done(None, process_ended())

    def _send_all(self, process: ChildProcess) -> None:
        while (document := self._outbox.get()) is not None:
            process.send(document)


def process_ended() -> WorkError:
    """The error of requests whose process is gone."""
    return WorkError(
        "the process that trains has ended, with the weights of this client in its memory",
        expected="a process that runs as long as its clients; mostly memory ran out",
        do="make a client from the last saved state: create_training_client_from_state_with_optimizer(path)",
    )
