"""The engine process of a server for the jobs of its home: a batch does not load a model a second time.

The server listens at a socket in the home, which only its owner can open. A job connects to it from its own process and
sends what `InferenceClient` would send to an engine process; lines of JSON in both directions:

    {"ask": ID, "model": Served, "request": TextRequest}, or "pool": PoolingRequest        to the server
    {"cancel": ID}
    {"loaded": [LoadedModel, ...]}    what is in memory, when a job connects and at each change      to the job
    {"events": [[ID, StreamEvent]]}
    {"declined": ID}                  the model is not in memory any more: the job loads it itself
    {"held_back": SECONDS}            for how long live requests have left jobs one place, without a pause; 0 after it

Live requests come first: while one is under way, one request of jobs is answered at a time, else so many that the
engine has places left. Those that wait take turns by job. They take no slot of the queue of live requests.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

from luthier.core.stream import LoadedModel, Served, StreamEvent
from luthier.core.system import facilities
from luthier.core.system.process_setup import start_daemon
from luthier.features.serving.inference_client import InferenceClient
from luthier.features.serving.open_request import OpenRequest, num_choices_of, request_of
from luthier.platform.home.context import Context
from luthier.platform.processes.fair_queue import FairQueue

log = logging.getLogger("luthier.api")

SOCKET: Final = "serving.sock"
MOST_AT_ONCE: Final = 12
"""Answers that are written for jobs at once while there are no live requests: fewer than an engine has places for, by
default 16 of llama.cpp, so that a live request that comes need not wait for the end of one."""
_LOOK_SECONDS: Final = 0.1
_TELL_SECONDS: Final = 1.0
_MAX_LINE_BYTES: Final = 1 << 28
_FDS: Final = Path("/proc/self/fd")
_AGAIN_SECONDS: Final = 1.0


@contextlib.contextmanager
def socket_address(home: Path) -> Iterator[str]:
    """The address of the socket in a home, of at most the hundred bytes that the system takes."""
    if not _FDS.is_dir():
        yield str(home / SOCKET)
        return
    descriptor = os.open(home, os.O_RDONLY | facilities.posix.O_DIRECTORY)
    try:
        yield f"{_FDS}/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


class EngineLending:
    """Lends the engine process of a server while the `with` block runs.

    Args:
        context: The home of the server.
        most_at_once: Answers that are written for jobs at once while there are no live requests.
        clock: Seconds that never go back.
    """

    def __init__(
        self, context: Context, *, most_at_once: int = MOST_AT_ONCE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._context, self._clock = context, clock
        self._free_at = clock()
        self._told_seconds = 0.0
        most_of_engine = context.settings.max_num_seqs
        self._most = min(most_at_once, max(1, most_of_engine - 1)) if most_of_engine else most_at_once
        self._lock = threading.Lock()
        self._waiting: FairQueue[_Asked] = FairQueue()
        self._running: dict[tuple[str, str], _Asked] = {}
        self._changed = threading.Event()
        self._is_closed = False
        self._listening: socket.socket | None = None
        self._jobs: dict[str, _Job] = {}

    def __enter__(self) -> Self:
        try:
            self._listening = _listen(self._context.home)
        except OSError as error:
            # A file system without sockets: jobs load their models themselves.
            log.warning("jobs of this home load their own models: no socket in %s: %s", self._context.home, error)
            return self
        start_daemon(self._accept_all, "lending")
        start_daemon(self._work, "lending-turns")
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_closed, jobs = True, list(self._jobs.values())
        self._changed.set()
        if self._listening is not None:
            with contextlib.suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listening.close()
            (self._context.home / SOCKET).unlink(missing_ok=True)
        for job in jobs:
            job.close()

    @property
    def client(self) -> InferenceClient:
        """What sends requests to the engine process."""
        return self._context.inference_client

    def _accept_all(self) -> None:
        assert self._listening is not None
        number = 0
        while not self._is_closed:
            try:
                connection, _ = self._listening.accept()
            except OSError as error:
                if self._is_closed:
                    return
                # Such as too many open files, which passes: without this thread jobs would connect and wait in vain.
                log.warning("a job could not borrow the engine: %s", error)
                time.sleep(_AGAIN_SECONDS)
                continue
            number += 1
            job = _Job(self, connection, f"job-{number}")
            with self._lock:
                self._jobs[job.name] = job
            job.start()
            self._changed.set()

    def add(self, job: _Job, document: dict[str, Any]) -> None:
        """Queue a request of a job, or cancel one."""
        with self._lock:
            if "cancel" in document:
                key = document["cancel"]
                self._waiting.remove(lambda one: one.job is job and one.key == key)
                running = self._running.pop((job.name, key), None)
            else:
                self._waiting.push(job.name, _Asked(job, document))
                running = None
        self._changed.set()
        if running is not None:
            running.cancel()

    def left(self, job: _Job) -> None:
        """A job is gone: nothing of it is answered any more."""
        with self._lock:
            self._jobs.pop(job.name, None)
            self._waiting.remove(lambda one: one.job is job)
            mine = [key for key in self._running if key[0] == job.name]
            running = [self._running.pop(key) for key in mine]
        self._changed.set()
        for one in running:
            one.cancel()

    def _work(self) -> None:
        """Start what may start, and tell jobs what is in memory."""
        loaded: tuple[LoadedModel, ...] = ()
        while not self._is_closed:
            # Live requests that end say nothing here: they are looked for.
            self._changed.wait(_LOOK_SECONDS if len(self._waiting) or self._jobs else None)
            self._changed.clear()
            if (now := self.client.loaded) != loaded:
                loaded = now
                for job in list(self._jobs.values()):
                    job.tell_loaded(loaded)
            while (one := self._next()) is not None:
                self._start(one)
            self._tell_held_back()

    def _tell_held_back(self) -> None:
        """Tell jobs for how long live requests have held theirs back, about once a second while they do."""
        now = self._clock()
        with self._lock:
            # What `_next` has just refused: more than one at a time beside live requests.
            if not (self._waiting and self._running and self._has_live):
                self._free_at = now
            seconds, jobs = now - self._free_at, list(self._jobs.values())
        if seconds - self._told_seconds >= _TELL_SECONDS or seconds < self._told_seconds:
            self._told_seconds = seconds
            for job in jobs:
                job.tell({"held_back": seconds})

    @property
    def _has_live(self) -> bool:
        return self.client.num_under_way > len(self._running)

    def _next(self) -> _Asked | None:
        with self._lock:
            if not self._waiting:
                return None
            owner, one = self._waiting.heads()[0]
            num_answers = one.num_answers + sum(running.num_answers for running in self._running.values())
            # A single one is always taken: beside live requests, and where it has more answers than the limit.
            if self._running and (self._has_live or num_answers > self._most):
                return None
            self._waiting.pop(owner)
            self._running[one.job.name, one.key] = one  # counted from here on
            return one

    def _start(self, one: _Asked) -> None:
        place = (one.job.name, one.key)

        def tell(event: StreamEvent) -> None:
            one.job.tell({"events": [[one.key, event.model_dump(mode="json")]]})

        answer = OpenRequest(one.request, tell)

        def hear(event: StreamEvent) -> None:
            answer.tell(event)
            if answer.ends_with(event):
                end()

        def end() -> None:
            with self._lock:
                self._running.pop(place, None)
            self._changed.set()

        def decline() -> None:
            one.job.tell({"declined": one.key})
            end()

        cancel = self.client.ask_loaded(one.model, one.request, hear, owner=one.job.name, declined=decline)
        if cancel is None:
            decline()
            return
        with self._lock:
            # It may have ended or been cancelled since.
            is_open = place in self._running
            if is_open:
                one.cancel = cancel
        if not is_open:
            cancel()


class _Asked:
    """A request of a job. cancel: once it is under way."""

    def __init__(self, job: _Job, document: dict[str, Any]) -> None:
        self.job, self.key = job, str(document["ask"])
        self.model = Served.model_validate(document["model"])
        self.request = request_of(document)
        self.num_answers = num_choices_of(self.request)
        self.cancel: Callable[[], None] = lambda: None


class _Job:
    """The connection of a job, with a thread that reads it and one that writes to it."""

    def __init__(self, lending: EngineLending, connection: socket.socket, name: str) -> None:
        self.name, self._lending, self._connection = name, lending, connection
        self._outbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Say what is in memory, and read requests from now on."""
        self.tell_loaded(self._lending.client.loaded)
        start_daemon(self._read_all, f"lending-{self.name}")
        # Of its own: a job that reads slowly must not hold up the thread that hears the engine process.
        start_daemon(self._write_all, f"lending-{self.name}-events")

    def tell(self, document: dict[str, Any]) -> None:
        """Send it; never blocks."""
        self._outbox.put(document)

    def tell_loaded(self, loaded: tuple[LoadedModel, ...]) -> None:
        """Say what is in memory."""
        self.tell({"loaded": [one.model_dump(mode="json") for one in loaded]})

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._outbox.put(None)

    def _read_all(self) -> None:
        try:
            for document in documents_of(self._connection):
                self._lending.add(self, document)
        except (OSError, ValueError, KeyError) as error:
            log.warning("a job that borrows the engine was not understood: %s", error)
        finally:
            self._lending.left(self)
            self.close()

    def _write_all(self) -> None:
        with contextlib.suppress(OSError):  # the job is gone, which its reader sees
            while (document := self._outbox.get()) is not None:
                self._connection.sendall(line_of(document))
        self._connection.close()


def documents_of(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """The documents that come, to the end of the connection.

    Raises:
        OSError: The connection fails.
        ValueError: A line is no JSON.
    """
    with connection.makefile("rb") as file:
        while line := file.readline(_MAX_LINE_BYTES):
            yield json.loads(line)


def line_of(document: dict[str, Any]) -> bytes:
    """A document as a line."""
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _listen(home: Path) -> socket.socket:
    """A socket in a home. Raises OSError where the file system has none."""
    place = home / SOCKET
    place.unlink(missing_ok=True)  # of a server that was killed: a home has one, which holds its lock
    listening = facilities.unix_socket()
    try:
        with socket_address(home) as address:
            listening.bind(address)
        place.chmod(0o600)  # nobody can connect before it listens
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening
