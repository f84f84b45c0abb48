"""Processes that belong together: started, restarted if they crash or hang, health-checked, and ended together.

supervisor --starts--> programs, each in its own session: Ctrl-C in a terminal reaches the supervisor alone

The kernel kills every program where the supervisor dies, however it dies; what they were doing is in the database. Use
it from the main thread of a process that has no other: that is whose death the kernel watches.

A supervisor has no time to wait for an HTTP response and may start no thread because of its forks. So a health probe is
a socket that does not block: each look takes it one step further.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.system import facilities
from luthier.core.system.process_setup import end_with, environment_of_program

_MOST_BYTES: Final = 1 << 16
_MOST_REASON_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Where to ask for the health of a program (`GET path`, 200 is healthy), and how long it may be unhealthy.

    Attributes:
        host: The address of the program.
        port: Its port.
        path: The path to ask for.
        every_seconds: Between two questions.
        timeout_seconds: Without an answer for this long the program counts as unhealthy.
        unhealthy_seconds: Unhealthy for this long without a break, it is restarted.
        start_seconds: The same for a program that has not answered yet.
    """

    host: str
    port: int
    path: str = "/healthz"
    every_seconds: float = 5.0
    timeout_seconds: float = 10.0
    unhealthy_seconds: float = 120.0
    start_seconds: float = 600.0


class HealthProbe:
    """Asks a program for its health, again from the beginning after each restart.

    Args:
        check: Where and how often to ask.
        clock: Seconds on a clock that is never set.
    """

    def __init__(self, check: HealthCheck, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._check, self._clock = check, clock
        self._socket: socket.socket | None = None
        self.restart()

    def restart(self) -> None:
        """Begin afresh: the program has just been started."""
        self.close()
        # Counted as well now: the time to start runs from here.
        self._well_at = self._next_at = self._clock()
        self._has_answered, self._problem = False, "it has not answered yet"

    def look(self) -> str | None:
        """Take the question a step further; returns why the program is to be started again, None where it is not."""
        now = self._clock()
        if self._socket is None:
            if now >= self._next_at:
                self._ask(now)
        else:
            self._go_on(now)
        # Loading a large database or migrating takes longer than a process that runs may stay silent.
        limit = self._check.unhealthy_seconds if self._has_answered else self._check.start_seconds
        seconds = now - self._well_at
        return f"{self._problem}; not healthy for {seconds:.0f} s" if seconds >= limit else None

    def close(self) -> None:
        """Cancel the running probe."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, now: float) -> None:
        self._asked_at, self._next_at = now, now + self._check.every_seconds
        self._is_sent, self._said = False, b""
        family = socket.AF_INET6 if ":" in self._check.host else socket.AF_INET
        try:
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            # Without blocking: it returns EINPROGRESS, and the socket becomes writable once the connection is made or
            # has failed.
            self._socket.connect_ex((self._check.host, self._check.port))
        except OSError as error:
            self._ended(now, None, f"it cannot be asked: {error}")

    def _go_on(self, now: float) -> None:
        assert self._socket is not None
        try:
            if not self._is_sent:
                self._send()
            # Time-out 0: looks without waiting.
            elif select.select([self._socket], [], [], 0)[0]:
                chunk = self._socket.recv(_MOST_BYTES)
                self._said += chunk
                # `Connection: close` was requested, so the answer ends with the connection.
                if not chunk or len(self._said) >= _MOST_BYTES:
                    self._ended(now, *_read(self._said))
                    return
        except OSError as error:
            self._ended(now, None, f"it cannot be reached: {error}")
            return
        if now - self._asked_at >= self._check.timeout_seconds:
            self._ended(now, None, f"no answer within {self._check.timeout_seconds:g} s")

    def _send(self) -> None:
        assert self._socket is not None
        if not select.select([], [self._socket], [], 0)[1]:
            return
        # The outcome of a connect that did not block: SO_ERROR, which reading resets.
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "refused")
        self._socket.sendall(
            f"GET {self._check.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        self._is_sent = True

    def _ended(self, now: float, status: int | None, problem: str) -> None:
        self.close()
        self._has_answered |= status is not None  # with any status: its start is over
        if status == 200:
            self._well_at = now
        self._problem = problem


def _read(said: bytes) -> tuple[int | None, str]:
    """Status of an answer, and its status and body as text."""
    head, _, body = said.partition(b"\r\n\r\n")
    status: int | None = None
    with contextlib.suppress(ValueError, IndexError):
        # `HTTP/1.1 200 OK`
        status = int(head.split(b" ", 2)[1])
    words = " ".join(body.decode("utf-8", "replace").split())[:_MOST_REASON_CHARACTERS]
    return status, f"status {status}: {words}" if status is not None else "an answer that is not HTTP"


_TICK_SECONDS: Final = 0.05
FIRST_REST_SECONDS: Final = 0.5
LONGEST_REST_SECONDS: Final = 30.0
_MOST_DOUBLINGS: Final = 20
_STACKS_SECONDS: Final = 0.5
_STEADY_SECONDS: Final = 60.0
"""A program that ran that long before it ended resets its back-off: its next pause is the first again."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is to run.

    Attributes:
        name: For messages.
        command: The command line.
        grace_seconds: From SIGTERM to SIGKILL.
        descriptors: Open files that it inherits.
        health: How its health is checked; None for no check. A program that stays unhealthy is restarted.
        stacks: The signal by which it writes the stacks of its threads to stderr; sent before it is ended as unhealthy.
    """

    name: str
    command: tuple[str, ...]
    grace_seconds: float
    descriptors: tuple[int, ...] = ()
    health: HealthCheck | None = None
    stacks: signal.Signals | None = None


class _Running:
    def __init__(self, program: Program) -> None:
        self.program, self.num_restarts, self.start_at = program, 0, 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.probe = None if program.health is None else HealthProbe(program.health)
        self.end_at: float | None = None  # by SIGTERM, because it is not healthy
        self.kill_at: float | None = None


class Supervisor:
    """Starts programs, restarts those that end or hang, and ends all of them together.

    Args:
        programs: The programs, in the order in which they are started.
        tell: Called with a sentence about every end that was not requested.
    """

    def __init__(self, programs: Sequence[Program], *, tell: Callable[[str], None]) -> None:
        self._all, self._tell = [_Running(program) for program in programs], tell

    def start(self) -> None:
        """Start all programs.

        Raises:
            OSError: A command cannot be started.
        """
        for one in self._all:
            self._start(one)

    def exit_code(self, name: str) -> int | None:
        """How a program has ended; None while it runs. Negative: by that signal."""
        process = next(one.process for one in self._all if one.program.name == name)
        return None if process is None else process.poll()

    def watch(self, stop_requested: Callable[[], str | None]) -> str:
        """Start again what ends, each time after a longer rest, until a stop is requested; returns the reason."""
        while (reason := stop_requested()) is None:
            for one in self._all:
                self._look_at(one)
            time.sleep(_TICK_SECONDS)
        return reason

    def stop(self) -> None:
        """Ask every program to end, and wait; kill what outlives its grace. An interrupt meanwhile kills all."""
        began = time.monotonic()
        try:
            for one in self._all:
                # All of them first, then the wait: their graces run side by side.
                if one.process is not None and one.process.poll() is None:
                    facilities.request_stop(one.process)
            while any(self._still_runs(one, time.monotonic() - began) for one in self._all):
                time.sleep(_TICK_SECONDS)
        finally:
            for one in self._all:
                self._sweep(one)
                if one.probe is not None:
                    one.probe.close()

    def _still_runs(self, one: _Running, waited: float) -> bool:
        if one.process is None or one.process.poll() is not None:
            return False
        if waited >= one.program.grace_seconds:
            self._tell(f"{one.program.name} did not end within {one.program.grace_seconds:g} s: killed")
            self._sweep(one)
            return False
        return True

    def _look_at(self, one: _Running) -> None:
        now = time.monotonic()
        if one.process is not None:
            if one.process.poll() is None and not self._has_to_end(one, now):
                return
            # What the program has started may still hold its port or its files.
            self._sweep(one)
            how = _how_it_ended(one.process.returncode)
            how = f"ended by itself ({how})" if one.end_at is None else f"has ended ({how})"
            # Exponential backoff, forgotten after a minute of steady running.
            one.num_restarts = 1 if now - one.started >= _STEADY_SECONDS else one.num_restarts + 1
            # The exponent is bounded: 2.0 ** 1024 is no float any more, and ends after a night would reach it.
            rest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2.0 ** min(one.num_restarts - 1, _MOST_DOUBLINGS))
            one.process, one.start_at = None, now + rest
            self._tell(f"{one.program.name} {how}: started again in {rest:g} s")
        elif now >= one.start_at:
            try:
                self._start(one)
            except OSError as error:
                one.start_at = now + LONGEST_REST_SECONDS
                self._tell(f"{one.program.name} cannot be started ({error}): tried again in {LONGEST_REST_SECONDS:g} s")

    def _has_to_end(self, one: _Running, now: float) -> bool:
        """Whether a program that runs is to be killed now: it is not healthy, and its grace is over."""
        assert one.process is not None
        # Three stages, a look apart: stacks, SIGTERM, SIGKILL. `watch` must never sleep for one program.
        if one.kill_at is not None:
            return now >= one.kill_at
        if one.end_at is not None:
            if now >= one.end_at:
                facilities.request_stop(one.process)
                one.kill_at = now + one.program.grace_seconds
            return False
        reason = None if one.probe is None else one.probe.look()
        if reason is not None:
            self._tell(f"{one.program.name} is not healthy ({reason}): ended, to be started again")
            one.end_at = now
            if one.program.stacks is not None:
                one.process.send_signal(one.program.stacks)
                one.end_at += _STACKS_SECONDS  # a signal that ends it would otherwise be acted on first
        return False

    def _start(self, one: _Running) -> None:
        supervisor = os.getpid()
        # Not `core.child_process`: programs serve on their own sockets, are probed over HTTP and have no result.
        one.process = subprocess.Popen(
            one.program.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # that of the supervisor is for its answer alone
            start_new_session=True,
            creationflags=facilities.GROUP_FLAGS,
            pass_fds=one.program.descriptors,
            # Between fork and exec in a process without threads: the kernel then kills the program with the supervisor.
            preexec_fn=(lambda: end_with(supervisor)) if facilities.is_linux() else None,
            env=environment_of_program(),  # elsewhere the program looks itself whether the supervisor still runs
        )
        one.started, one.end_at, one.kill_at = time.monotonic(), None, None
        if one.probe is not None:
            one.probe.restart()

    def _sweep(self, one: _Running) -> None:
        """End a program, and what it may have left behind in its group."""
        if one.process is None:
            return
        # The group is the program's own session (start_new_session), so its number is the process id.
        facilities.kill_group(one.process.pid)
        one.process.wait()


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
