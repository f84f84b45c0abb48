"""The owner's side of a fork server: start it, have it fork programs, see how they end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Final, Self

from luthier.core.child_process.fork_server import (
    HELLO,
    PROGRAM,
    TITLE_BYTES,
    UNFIT,
    Request,
    Start,
    inherited_state,
    receive,
    send,
)
from luthier.core.system.facilities import SIGKILL, can_fork, polling, sockets

_REPLY_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.1
_FIRST_PAUSE_SECONDS: Final = 0.0005
_LAST_PAUSE_SECONDS: Final = 0.02
_ONCE_MORE: Final = "a program loads its libraries itself, since it could not be forked"


class NotStartedError(Exception):
    """A program was not started, since a stop was requested while it waited for the server."""


class ForkedProcess:
    """A program that was forked: what this project uses of `subprocess.Popen`.

    Attributes:
        pid: Its process id.
        stdin: The pipe to its standard input, unbuffered.
        stdout: The pipe from its standard output, likewise.
        returncode: How it ended; None while it runs, as seen by `poll` and `wait`. Negative: by that signal.
            It is -SIGKILL where the fork server itself was killed meanwhile, since no other process knows the exit
            code.
    """

    def __init__(self, pid: int, pidfd: int, connection: socket.socket, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd, self._connection, self._lock = pidfd, connection, threading.Lock()
        self.stdin: IO[bytes] | None = os.fdopen(stdin, "wb", buffering=0)
        self.stdout: IO[bytes] | None = os.fdopen(stdout, "rb", buffering=0)

    def poll(self) -> int | None:
        """How it ended; None where it still runs."""
        with self._lock:
            if self.returncode is None and _is_readable(self._connection.fileno()):
                told = b""
                with contextlib.suppress(OSError):
                    told = self._connection.recv(4)
                if told:
                    self.returncode = struct.unpack("!i", told)[0]
                # The server has died: the process itself says whether it runs, but not how it ended.
                elif _is_readable(self._pidfd):
                    self.returncode = -SIGKILL
                if self.returncode is not None:
                    self._connection.close()
                    os.close(self._pidfd)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """How it ended, once it has.

        Raises:
            subprocess.TimeoutExpired: It still runs after that many seconds.
        """
        # Looked at again and again, so that other threads may ask and send signals meanwhile.
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE_SECONDS
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)
        return code


class ForkServer:
    """The owner's handle of a fork server. It starts with `start` or the first program, and again where it has died.

    All methods may be called from any thread. Its environment and folder are those of the moment this handle is made.

    Args:
        modules: What it loads before the first fork, by name.
        imports_folder: Where the result of transformers' search of its own files is stored (`keep_import_structure`);
            None to have it search again.
        tell: Called with a sentence where a program has to be started in the usual way, and why.
        free_variables: Variables in which the environment of a program may differ from that of the server, since
            nothing reads them while the modules are loaded.
        patience_seconds: How long a program waits for a server that is still loading, before it is started in the usual
            way.
    """

    program: ClassVar[str] = PROGRAM
    """The module that runs as the server."""

    def __init__(
        self,
        modules: Sequence[str],
        *,
        tell: Callable[[str], None],
        imports_folder: Path | None = None,
        free_variables: Sequence[str] = (),
        patience_seconds: float = 30.0,
    ) -> None:
        self.patience_seconds = patience_seconds
        self._modules, self._imports_folder = tuple(modules), imports_folder
        self._free_variables = tuple(free_variables)
        self._environment, self._folder = dict(os.environ), Path.cwd()
        self._tell, self._lock = tell, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._log: IO[bytes] | None = None
        self._has_answered = False
        self._is_refused = not (can_fork() and hasattr(os, "pidfd_open"))

    @property
    def pid(self) -> int | None:
        """Its process id; None where it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Have it load its libraries now, in the background."""
        with self._lock:
            if not self._is_up() and self._process is None and not can_fork():
                self._tell("this system has no fork server: each program loads its libraries itself")

    def start_program(
        self,
        command: Sequence[str],
        *,
        stderr: IO[bytes],
        wait_seconds: float | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> ForkedProcess | None:
        """Fork a program in its own session, with pipes as standard input and output.

        Args:
            command: `[sys.executable, "-m", MODULE, ...]`.
            stderr: Its standard error.
            wait_seconds: The same as `patience_seconds`, for this program; None for that one.
            stop_requested: Called while it waits: whether the program is not wanted any more.

        Returns:
            The program; None where it must be started in the usual way. It has not been started then.

        Raises:
            NotStartedError: A stop was requested while it waited. Nothing was started.
            OSError: The server died while it was forking: whether the program began is not known.
        """
        if self._is_refused:
            return None  # before what follows is looked up, which other systems do not have
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        program = None
        request = Request(command=list(command), environment=dict(os.environ), state=inherited_state())
        try:
            forked = self._fork(request, [theirs_in, theirs_out, stderr.fileno()], wait_seconds, stop_requested)
            if forked is not None:
                program = ForkedProcess(*forked, ours_in, ours_out)
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
            if program is None:
                # If it is unknown whether it was forked, its input ends, which a guard takes as the end of its owner.
                os.close(ours_in)
                os.close(ours_out)
        return program

    def _fork(
        self,
        request: Mapping[str, Any],
        files: Sequence[int],
        wait_seconds: float | None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> tuple[int, int, socket.socket] | None:
        """Process id, pidfd and connection of a program that was forked; None, errors and the rest as `start_program`.

        Args:
            request: A `Request`.
            files: Its standard files, stdin first.
            wait_seconds, stop_requested: As `start_program` has them.
        """
        connection = self._connect(self.patience_seconds if wait_seconds is None else wait_seconds, stop_requested)
        if connection is None:
            return None
        try:
            connection.settimeout(_REPLY_SECONDS)
            send(connection, request, files)
            reply, received = receive(connection)
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        if "refused" in reply:
            connection.close()
            self._tell(f"{_ONCE_MORE}: {reply['refused']}")
            return None
        return reply["pid"], received[0], connection

    def close(self) -> None:
        """End the server; programs that it forked keep running."""
        with self._lock:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, wait_seconds: float, stop_requested: Callable[[], bool]) -> socket.socket | None:
        """A connection to the server, once it is ready for a request."""
        with self._lock:
            if not self._is_up() or self._control is None:
                return None
            asked = self._process
            ours, theirs = socket.socketpair()
            with theirs, contextlib.suppress(OSError):  # where it has just died, `recv` finds the connection closed
                sockets.send_fds(self._control, [HELLO], [theirs.fileno()])
        # The request is sent only after the server has reported that it is ready: one that gave up waiting must not
        # find its program started later.
        try:
            is_ready = _is_ready(ours, wait_seconds, stop_requested)
        except TimeoutError:
            self._tell(f"{_ONCE_MORE}: no fork server within {wait_seconds:.3g} s")
            ours.close()
            return None
        except NotStartedError:
            ours.close()
            raise
        except OSError:
            is_ready = False
        with self._lock:
            # Another thread may have seen its end first, and started the next one.
            if self._process is asked:
                self._has_answered |= is_ready
                if not is_ready:
                    self._note_end()
        if is_ready:
            return ours
        ours.close()
        return None

    def _is_up(self) -> bool:
        """Whether a server runs; starts one where none does. Called with the lock held."""
        if self._process is not None and self._process.poll() is not None:
            self._note_end()
        if self._process is None and not self._is_refused:
            try:
                self._launch()
            except OSError as error:
                self._tell(f"the fork server cannot be started: {error}")
        return self._process is not None

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        self._has_answered, self._log = False, tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_release`
        start = Start(
            descriptor=theirs.fileno(),
            # The kernel would kill it with the thread that started it, which may end long before this process.
            owner=os.getpid() if threading.current_thread() is threading.main_thread() else None,
            modules=self._modules,
            imports_folder=None if self._imports_folder is None else str(self._imports_folder),
            free_variables=self._free_variables,
        )
        try:
            self._process = subprocess.Popen(
                # As `python -m` starts programs, so that the paths of imports and all flags are theirs.
                [sys.executable, "-m", self.program, json.dumps(start).ljust(TITLE_BYTES)],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in a terminal reaches the owner alone
            )
        except BaseException:
            ours.close()
            self._log.close()
            raise
        finally:
            theirs.close()
        self._control = ours

    def _note_end(self) -> None:
        """Say how the server ended. One that never was ready, or is unfit, would not be better the next time."""
        if self._process is None or self._log is None:
            return
        try:
            code = self._process.wait(_CLOSE_SECONDS)  # its sockets may close a moment before it is gone
        except subprocess.TimeoutExpired:
            return
        self._log.seek(0)
        said = (self._log.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1]
        # It may have answered before it had loaded all.
        if self._has_answered and code != UNFIT:
            self._tell(f"the fork server ended ({said}): started again with the next program")
        else:
            self._is_refused = True
            self._tell(f"there is no fork server, so each program loads its libraries itself: {said}")
        self._release()

    def _release(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                # While it loads libraries it does not look at its socket.
                self._process.wait(_CLOSE_SECONDS if self._has_answered else 0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()
        self._process = self._control = self._log = None


def _is_ready(connection: socket.socket, wait_seconds: float, stop_requested: Callable[[], bool]) -> bool:
    """Whether the server says that it is ready; false where it has ended.

    Raises:
        TimeoutError: It says nothing for that long.
        NotStartedError: A stop was requested meanwhile.
    """
    deadline = time.monotonic() + max(0.01, wait_seconds)
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(min(left, _LOOK_SECONDS))
        try:
            return connection.recv(1) == HELLO
        except TimeoutError:
            if stop_requested():
                raise NotStartedError from None
    raise TimeoutError


def _is_readable(descriptor: int) -> bool:
    poller = polling.poll()
    poller.register(descriptor, polling.POLLIN)
    return bool(poller.poll(0))
