"""Whether a program that answers HTTP is healthy, asked without ever waiting, and without a thread.

A supervisor has no time to wait for an answer and may start no thread beside its forks. So a question is a socket that
does not block: each look takes it one step further.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

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
        """Give up the question that is under way."""
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
                # `Connection: close` was asked for, so the answer ends with the connection.
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
        self._has_answered |= status is not None  # whatever it says: its start is over
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
    return status, f"status {status}: {words}" if status is not None else "an answer that is no HTTP"
