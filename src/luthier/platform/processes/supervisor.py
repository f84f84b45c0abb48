"""Processes that belong together: started, started again where they crash or hang, and ended together.

    supervisor --starts--> programs, each in a session of its own: Ctrl-C in a terminal reaches the supervisor alone

The kernel kills every program where the supervisor dies, however it dies; what they were doing is in the database. Use
it from the main thread of a process that has no other: that is whose death the kernel looks at.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.system.parent_death import end_with
from luthier.platform.processes.health_probe import HealthCheck, HealthProbe

_TICK_SECONDS: Final = 0.05
FIRST_REST_SECONDS: Final = 0.5
LONGEST_REST_SECONDS: Final = 30.0
_STACKS_SECONDS: Final = 0.5
_STEADY_SECONDS: Final = 60.0
"""Who ran that long before it ended starts afresh: its next rest is the first again."""


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
                    one.process.terminate()
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
            rest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2.0 ** (one.num_restarts - 1))
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
                one.process.terminate()
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
        # Not `core.child_process`: programs serve on sockets of their own, are probed over HTTP and have no result.
        one.process = subprocess.Popen(
            one.program.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # that of the supervisor is for its answer alone
            start_new_session=True,
            pass_fds=one.program.descriptors,
            # Between fork and exec in a process without threads: the kernel then kills the program with the supervisor.
            preexec_fn=lambda: end_with(supervisor),
        )
        one.started, one.end_at, one.kill_at = time.monotonic(), None, None
        if one.probe is not None:
            one.probe.restart()

    def _sweep(self, one: _Running) -> None:
        """End a program, and what it may have left behind in its group."""
        if one.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The group is the program's own session (start_new_session), so its number is the process id.
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
