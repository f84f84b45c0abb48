"""The life of a child process behind a queue: started, heard and written to by its own threads, and ended.

Whoever sends to it waits neither for its start nor for its answers. One instance is one process: after its end another
one is made.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from luthier.core.child_process.process import ChildProcess
from luthier.core.errors import BusyError
from luthier.core.system.process_setup import start_daemon

_CLOSE_SECONDS: Final = 10.0
# A server reads sixteen requests that come together within 80 ms, mostly less than 8 ms after one another.
_GATHER_SECONDS: Final = 0.008
_MAX_GATHER_SECONDS: Final = 0.15


class QueuedProcess(ABC):
    """One child process, with a thread that starts and reads it, and one that writes to it.

    A subclass sets its own fields before it calls this constructor, which starts the process.

    Args:
        name: Of its threads.
        what: The process in messages, such as `the process that answers`.
        look_seconds: The longest wait for a message between two calls of `is_done`.

    Attributes:
        has_ended: Whether it takes nothing more; set under `lock`.
    """

    def __init__(self, name: str, what: str, *, look_seconds: float) -> None:
        self._name, self._what, self._look_seconds = name, what, look_seconds
        self.lock = threading.Lock()
        self.has_ended = self.is_closed = False
        self._outbox: queue.SimpleQueue[tuple[dict[str, Any], float] | None] = queue.SimpleQueue()
        self._process: ChildProcess | None = None
        # The kernel kills the child when the thread that started it ends, so that thread must live as long.
        self._reader = start_daemon(self._live, name)

    @abstractmethod
    def start(self) -> ChildProcess:
        """Start the process."""

    @abstractmethod
    def hear(self, event: Any) -> None:
        """An event of the process, in the thread that reads it."""

    @abstractmethod
    def is_done(self, *, is_silent: bool) -> bool:
        """Asked between two reads: whether the process is not needed any more, and from now on takes nothing.

        Args:
            is_silent: Whether the last read had no message.
        """

    @abstractmethod
    def end(self) -> Callable[[], None]:
        """The process has ended or is about to: take nothing more; returns what fails the requests that are left."""

    @property
    def pid(self) -> int | None:
        """The process; None before it has started."""
        return None if self._process is None else self._process.pid

    def is_wanted(self, document: dict[str, Any]) -> bool:  # noqa: ARG002 - for subclasses
        """Asked right before a document is sent: whether it still has to be."""
        return True

    def put(self, document: dict[str, Any], *, gathers: bool = False) -> None:
        """Send a document, in order; never blocks. Call it without the lock.

        Args:
            document: What is sent.
            gathers: Whether it waits for others that come at the same moment, since they may make it unwanted: until
                they have, or nothing has come for 8 ms, at most 150 ms. What comes behind it waits as long.
        """
        self._outbox.put((document, time.monotonic() + _MAX_GATHER_SECONDS if gathers else 0.0))

    def close(self) -> None:
        """Have it end, and wait until it has."""
        with self.lock:
            self.is_closed = True
            if self._process is not None:
                self._process.hang_up()
        self._reader.join(_CLOSE_SECONDS)

    def _live(self) -> None:
        """Start the process, read its events until it ends, and fail what is left."""
        try:
            process = self.start()
            with self.lock:
                self._process = process
                if self.is_closed:
                    process.hang_up()
            # From its own thread: a busy process must not block those that send.
            start_daemon(partial(self._send_all, process), f"{self._name}-asks")
            self._hear_all(process)
        except (OSError, BusyError) as error:
            sys.stderr.write(f"luthier: {self._what} cannot be started or heard: {error}\n")
        finally:
            self._end()

    def _hear_all(self, process: ChildProcess) -> None:
        while True:
            messages = process.receive(self._look_seconds)
            if not messages and process.has_hung_up:
                return
            for message in messages:
                if "event" not in message:  # it failed; see its log
                    return
                self.hear(message["event"])
            if self.is_done(is_silent=not messages):
                return

    def _end(self) -> None:
        fail_rest = self.end()
        self._outbox.put(None)
        if self._process is not None:
            self._process.kill()
            self._process.close()
        fail_rest()

    def _send_all(self, process: ChildProcess) -> None:
        while (item := self._outbox.get()) is not None:
            document, gather_until = item
            num_behind = -1
            # Once others have made it unwanted they must not wait behind it.
            while time.monotonic() < gather_until and num_behind != self._outbox.qsize() and self.is_wanted(document):
                num_behind = self._outbox.qsize()
                time.sleep(_GATHER_SECONDS)
            if self.is_wanted(document):
                process.send(document)
