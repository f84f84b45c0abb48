"""Processes forked from this one that answer its requests side by side, each with what it had in memory at the fork.

    this process  --request (JSON)-->  workers
                  <--notes, answer or failure--

Nothing is loaded or sent before the first request: models, rows and closures are there, in pages that are shared until
somebody writes to them (copy on write). The dangers of a fork are met: a worker does not return into the code of its
parent, runs none of its clean-up, ignores wishes to stop (they are for the parent), and dies with it. Where memory is
short the kernel ends a worker first, and its parent does the rest.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from luthier.core.child_process.forked_program import ForkedChild
from luthier.core.child_process.process import how_it_ended
from luthier.core.errors import first_line
from luthier.core.system import process_memory
from luthier.core.system.facilities import SIGKILL, fork
from luthier.core.system.process_setup import end_before_parent, end_with

Note = Callable[[Any], None]
"""Called with each message that precedes the answer."""
Answer = Callable[[Any, Note], Any]
"""What a worker does with a request; request, notes and answer are JSON, which keeps every bit of a float."""

_CLOSE_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.005
_READ_BYTES: Final = 1 << 16


class LostWorkerError(Exception):
    """A worker has ended, or failed at a request. The text says how; the others are still there until `close`."""


@dataclass(slots=True, eq=False)
class Worker:
    """One of the processes.

    Attributes:
        number: counted from 0.
        process: its process.
        connection: the channel to it.
        request: what it works on; None while it is free.
        received: of its next line, what has come so far.
        peak_bytes: the most memory that it had for itself.
    """

    number: int
    process: ForkedChild
    connection: socket.socket
    request: Any = None
    received: bytearray = field(default_factory=bytearray)
    peak_bytes: int = 0


class ForkedWorkers:
    """A number of workers. `close` ends them.

    Args:
        answer: run in a worker for each request.
        kind: what messages call one, such as "a worker of micro-batches".
        prepare: run once in each worker, before its first request.
    """

    def __init__(self, answer: Answer, *, kind: str, prepare: Callable[[], None]) -> None:
        self._answer, self._kind, self._prepare = answer, kind, prepare
        self._workers: list[Worker] = []

    @property
    def workers(self) -> list[Worker]:
        """Those that are there, by their numbers."""
        return list(self._workers)

    def start(self, num: int) -> None:
        """Fork that many workers.

        Must be called by a thread that lives as long as they do: the kernel ends them with it.

        Raises:
            LostWorkerError: the system has no room for another process.
        """
        process_memory.release_free_pages()
        process_memory.begin_workers()
        # No collection between a fork and the freeze in its child. This process freezes nothing: a model with a cycle,
        # as each adapted layer has one, would stay in memory after its training.
        is_collecting = gc.isenabled()
        gc.disable()
        try:
            for number in range(num):
                self._workers.append(self._fork(number, is_collecting=is_collecting))
        except OSError as error:
            raise LostWorkerError(f"{self._kind} cannot be started: {error}") from error
        finally:
            if is_collecting:
                gc.enable()

    def _fork(self, number: int, *, is_collecting: bool) -> Worker:
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        try:
            pid = fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            # A collection would write to the pages of all that is inherited, and each written page is copied.
            gc.freeze()
            if is_collecting:
                gc.enable()
            # Ends of other workers' channels: held open here, their closing would not be seen there.
            for other in self._workers:
                other.connection.close()
            ours.close()
            self._run_child(parent, theirs)
        theirs.close()
        return Worker(number, ForkedChild(pid), ours)

    def _run_child(self, parent: int, connection: socket.socket) -> NoReturn:
        """What a worker does until its channel is closed; never returns into the code of its parent."""
        code = 1
        try:
            end_with(parent)
            end_before_parent()
            # Wishes to stop are for the parent, which ends its work first; it closes the channel afterwards.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            # A tokenizer would wait forever for the threads of its pool, which the fork left behind.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            process_memory.keep_freed_memory()  # one request allocates what the one before has freed
            self._prepare()
            self._serve(connection)
            code = 0
        except (BrokenPipeError, ConnectionResetError):
            code = 0  # no one waits for the answer any more
        finally:
            if code:
                traceback.print_exc()
            # Not sys.exit: open databases, temporary folders and locks belong to the parent.
            os._exit(code)

    def _serve(self, connection: socket.socket) -> None:
        memory = process_memory.WorkerMemory()

        def send(message: dict[str, Any]) -> None:
            connection.sendall(json.dumps(message).encode() + b"\n")

        for line in connection.makefile("rb"):
            memory.begin()
            try:
                message = {"answer": self._answer(json.loads(line), lambda note: send({"note": note}))}
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:  # noqa: BLE001 - of any kind: the parent computes it again and raises it
                message = {"failed": f"{type(error).__name__}: {first_line(error)}"}
            send(message | {"peak_bytes": memory.peak_bytes()})

    def give(self, worker: Worker, request: Any) -> None:
        """Let a free worker begin with a request.

        Raises:
            LostWorkerError: it has ended.
        """
        try:
            worker.connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._lost(worker) from error
        worker.request = request

    def answers(self, note: Note) -> list[tuple[Worker, Any, Any]]:
        """What workers have answered by now: worker, request, answer. Waits until something has come.

        Args:
            note: called with each note that has come, in the order of each worker; there may be notes and no answer.

        Raises:
            LostWorkerError: a worker has ended, or failed at its request.
        """
        found: list[tuple[Worker, Any, Any]] = []
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                if worker.request is not None:
                    selector.register(worker.connection, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in selector.select()] if selector.get_map() else []
        for worker in ready:
            for message in self._read(worker):
                if "note" in message:
                    note(message["note"])
                    continue
                worker.peak_bytes = max(worker.peak_bytes, message["peak_bytes"])
                request, worker.request = worker.request, None
                if "failed" in message:
                    raise LostWorkerError(f"{self._kind} failed with {message['failed']}")
                found.append((worker, request, message["answer"]))
        return found

    def _read(self, worker: Worker) -> list[dict[str, Any]]:
        """The messages that have come whole."""
        data = b""
        with contextlib.suppress(ConnectionResetError):  # killed with a request unread
            data = worker.connection.recv(_READ_BYTES)
        if not data:
            raise self._lost(worker)
        worker.received += data
        *lines, rest = worker.received.split(b"\n")
        worker.received = rest
        return [json.loads(line) for line in lines]

    def _lost(self, worker: Worker) -> LostWorkerError:
        code = worker.process.wait()
        # Nobody else sends this signal to a worker, but for a person.
        why = " (as the system does where memory is short)" if code == -SIGKILL else ""
        return LostWorkerError(f"{self._kind} {how_it_ended(code)}{why}")

    def close(self) -> None:
        """End the workers and wait until they have ended; what they are in the middle of is lost."""
        workers, self._workers = self._workers, []
        if not workers:
            return
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            _end(worker)
        process_memory.end_workers(sum(worker.peak_bytes for worker in workers))


def _end(worker: Worker) -> None:
    """Wait for a worker whose channel is closed; one that works, or does not end, is killed."""
    deadline = time.monotonic() + (0.0 if worker.request is not None else _CLOSE_SECONDS)
    while worker.process.poll() is None and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    if worker.process.poll() is None:
        os.kill(worker.process.pid, SIGKILL)
    worker.process.wait()
