"""The parent's side of the protocol: a child process that is started, spoken with, limited and ended.

    parent  --start, requests-->  child (its own process group, which dies with its parent)
            <--events, results, errors--

Every child runs code of this project by a "module:function" name; see `channel` for what is sent. A child that raises
what Luthier raises on purpose makes the parent raise the same class. One that dies, is late or fails in another way is
a `ChildEndedError` with the end of its log.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Self

from luthier.core.child_process.channel import Start
from luthier.core.child_process.handover import CREDENTIAL, Handover
from luthier.core.errors import StoppedError, WorkError, error_from
from luthier.core.system import facilities
from luthier.core.system.files import says_disk_full
from luthier.core.system.process_setup import start_daemon

OnEvent = Callable[[Any], None]

_LOG_BYTES: Final = 16_384
_LOG_LINES: Final = 8
_CLOSE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.2
_THREADS: Final = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ChildEndedError(WorkError):
    """A child ended without the result that was waited for.

    Attributes:
        returncode: negative for the signal that ended it.
        log_lines: the last lines of its stdout and stderr.
        is_late: whether it was killed because its time was up.
    """

    def __init__(self, title: str, returncode: int, log_lines: Sequence[str], *, is_late: bool = False) -> None:
        self.returncode, self.log_lines, self.is_late = returncode, tuple(log_lines), is_late
        how = "was not done in time" if is_late else f"ended with exit code {returncode}"
        super().__init__(
            "\n    ".join([f"{title} {how}; its output:", *log_lines]),
            expected="a child process that runs to its end",
            do="exit code -9 means that memory ran out: free some; otherwise report this",
        )

    @property
    def how(self) -> str:
        """How it ended: `with exit code 3`, `by SIGSEGV`."""
        return f"by {signal_name(-self.returncode)}" if self.returncode < 0 else f"with exit code {self.returncode}"

    @property
    def is_killed(self) -> bool:
        """Whether the system has killed it, mostly because memory ran out; not where its time was up."""
        return self.returncode == -facilities.SIGKILL and not self.is_late

    def as_json(self) -> dict[str, Any]:
        """The error as a plain document: a WorkError for the reader, since the class belongs to this package."""
        return super().as_json() | {"type": WorkError.__name__}


class ChildProcess:
    """A child process. Use it in a `with` block: it is closed at its end, and killed where the block raises.

    All methods may be called from any thread, but only one at a time may receive. On Linux the child dies with the
    *thread* that starts it, so that thread must live as long as the child is needed.

    Args:
        function: what it runs, as "module:function"; called with the document and a `channel.Channel`.
        document: the argument of the function, any JSON value.
        title: names it in errors.
        environment: variables added to those of this process, or in place of them.
        num_threads: CPU threads of its numerical libraries; None leaves that to them.
        memory_bytes: its most address space; what needs more gets a MemoryError there.
        log: the file to which stdout and stderr are appended. None: a file without a name, for `log_lines`.
            "inherit": stderr is that of this process, and stdout is dropped.
        stdin: an open file that is its standard input; None for an empty one.
        pass_fds: descriptors that it inherits besides its channel, where children do (`facilities.inheritable`).
        has_session: whether it leads its own session. Linux shares CPU time among sessions first, so that a server
            of low priority (`lower_priority`) does not lower a training that it starts.
        dies_with_parent: whether the kernel kills it where this process ends. If not, it has to end by itself.
    """

    def __init__(
        self,
        function: str,
        document: Any,
        *,
        title: str = "",
        environment: Mapping[str, str] | None = None,
        num_threads: int | None = None,
        memory_bytes: int | None = None,
        log: Path | str | None = None,
        stdin: IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
        has_session: bool = False,
        dies_with_parent: bool = True,
    ) -> None:
        self.title = title or function
        self._send_lock, self._request_lock = threading.Lock(), threading.Lock()
        self._pending, self._messages = bytearray(), list[dict[str, Any]]()
        self._is_ending = False
        self.has_hung_up = False
        """Whether its end of the channel is closed: it has ended, or is ending."""
        # A socket pair, not a pipe: one descriptor for both directions, and its end shows on both sides.
        handover = Handover()
        self._log = _open_log(log)
        # What the child's own children are to see; the child itself gets the paths of this process.
        python_path = (environment or {}).get("PYTHONPATH", os.environ.get("PYTHONPATH"))
        more = {} if num_threads is None else dict.fromkeys(_THREADS, str(num_threads))
        if handover.secret:
            more |= {CREDENTIAL: handover.secret}
        try:
            self._process = subprocess.Popen(
                # -P and the paths of this process: the child imports what this one would, and nothing from the
                # folder that it happens to be started in.
                [sys.executable, "-P", "-m", "luthier.core.child_process", handover.argument, function],
                env={**os.environ, **more, **(environment or {}), "PYTHONPATH": _python_path(python_path)},
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=subprocess.DEVNULL if self._log is None else self._log,
                stderr=self._log,
                pass_fds=(*handover.pass_fds, *pass_fds),
                # A separate group: Ctrl-C in a terminal reaches only the parent, which ends its children in order.
                process_group=None if has_session else 0,
                start_new_session=has_session,
                creationflags=facilities.GROUP_FLAGS,
            )
        except BaseException:
            handover.close()
            self._close_log()
            raise
        # Only the child must hold its end: otherwise its death would not close the channel.
        self._connection = handover.connected(lambda: self._process.poll() is None)
        try:
            self.send(
                Start(
                    document=document,
                    parent=os.getpid() if dies_with_parent else None,
                    memory_bytes=memory_bytes,
                    python_path=python_path,
                )
            )
        except BaseException:
            self.kill()
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it has ended; None while it runs. Negative: by that signal."""
        return self._process.poll()

    @property
    def is_running(self) -> bool:
        """Whether it can still be asked."""
        return not self._is_ending and not self.has_hung_up and self._process.poll() is None

    def fileno(self) -> int:
        """The descriptor that becomes readable when it has sent something, for `select`."""
        return self._connection.fileno()

    def send(self, request: Any) -> None:
        """Send a request. A child that has died meanwhile is noticed by who reads its messages."""
        # Encoded outside the lock: a request that is not JSON raises before a byte is sent.
        line = json.dumps(request).encode() + b"\n"
        with self._send_lock, contextlib.suppress(OSError):
            self._connection.sendall(line)

    def receive(self, timeout_seconds: float | None = None) -> list[dict[str, Any]]:
        """The messages that have come, waiting for the first.

        Returns:
            Messages as `channel` describes them; none where the time is up or `has_hung_up` is set.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._messages and not self.has_hung_up:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not facilities.is_readable(self._connection, left):
                return []
            self._read()
        found, self._messages = self._messages, []
        return found

    def request(self, request: Any, *, timeout_seconds: float | None = None, on_event: OnEvent | None = None) -> Any:
        """Send a request to a warm child and wait for its result; other threads wait for their turn.

        Raises:
            LuthierError: the child raised one; it is raised again as the same class.
            OSError: no room was left on a disk.
            MemoryError: the child met its memory limit.
            ChildEndedError: the child died, or its time was up: then it is killed.
        """
        with self._request_lock:
            self.send(request)
            return self.result(timeout_seconds=timeout_seconds, on_event=on_event)

    def result(self, *, timeout_seconds: float | None = None, on_event: OnEvent | None = None) -> Any:
        """Wait for the next result; for a child that answers no requests, that of its function.

        Args:
            timeout_seconds: from now on; the child is killed when they are over.
            on_event: called with each event that comes before.

        Raises:
            LuthierError: the child raised one; it is raised again as the same class.
            OSError: no room was left on a disk.
            MemoryError: the child met its memory limit.
            ChildEndedError: the child died, or its time was up: then it is killed.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            # Where the time is up, what has come by then is still looked at: a result that arrived in time is not lost.
            is_over = left is not None and left <= 0
            messages = self.receive(0.0 if is_over else left)
            for position, message in enumerate(messages):
                if "event" not in message:
                    # Messages behind the result belong to the next request.
                    self._messages[:0] = messages[position + 1 :]
                    return result_of(message)
                if on_event is not None:
                    on_event(message["event"])
            if is_over or not messages:
                # No result came: either its time is up, or the channel is closed.
                error = self.ended(is_late=not self.has_hung_up)
                if says_disk_full("\n".join(error.log_lines)):  # a library aborted over it
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise error

    def ended(self, *, is_late: bool = False) -> ChildEndedError:
        """The error about its end, which it waits for.

        Args:
            is_late: it is killed because its time is up.
        """
        if is_late:
            self.kill()
        return ChildEndedError(self.title, self.wait(), self.log_lines(), is_late=is_late)

    def hang_up(self) -> None:
        """Close the channel: a warm child ends, and `receive` in another thread returns."""
        with contextlib.suppress(OSError):
            # shutdown, not close: another thread may be waiting on this descriptor, and its number could be given out
            # again.
            self._connection.shutdown(socket.SHUT_RDWR)
        self.has_hung_up = True

    def wait(self, grace_seconds: float = _CLOSE_SECONDS) -> int:
        """Its exit code, once it has ended.

        One that keeps running after its channel was closed is killed after the grace period.
        """
        try:
            return self._process.wait(grace_seconds if self.has_hung_up else None)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def log_lines(self, most: int = _LOG_LINES) -> list[str]:
        """The last lines that it wrote to stdout and stderr."""
        if self._log is None:
            return []
        size = os.fstat(self._log.fileno()).st_size
        # The file's position stays, which the child shares through the inherited descriptor.
        tail = facilities.read_at(self._log.fileno(), _LOG_BYTES, max(0, size - _LOG_BYTES))
        return tail.decode(errors="replace").strip().splitlines()[-most:]

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the child alone; nothing where it has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it and what it has started immediately."""
        # poll() first: once the child is reaped, its number may belong to another group.
        if self._process.poll() is None:
            facilities.kill_group(self._process.pid)

    def request_stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end in good order, by a signal or what the system has in its place; nothing where it has ended."""
        if not hasattr(signal, "CTRL_BREAK_EVENT"):
            self.send_signal(number)
        elif self._process.poll() is None:
            facilities.request_stop(self._process)

    def stop(self, grace_seconds: float) -> int:
        """End it in order: SIGTERM, and SIGKILL where it still runs after the grace. Returns its exit code."""
        self.request_stop()
        try:
            return self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def close(self, grace_seconds: float = _CLOSE_SECONDS) -> None:
        """Close the channel, at which a warm child ends by itself, and wait for its end; kill it after the grace."""
        self.hang_up()
        self.wait(grace_seconds)
        self._connection.close()
        self._close_log()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self.kill()
        self.close()

    def _read(self) -> None:
        """Take in what has come; called when there is something."""
        try:
            chunk = self._connection.recv(1 << 16)
        except OSError:  # it died with bytes of ours unread
            chunk = b""
        if not chunk:
            self.has_hung_up = True
            return
        self._pending += chunk
        if b"\n" not in chunk:  # so that a long line is searched once
            return
        # What follows the last line break is the beginning of the next message.
        *lines, rest = self._pending.split(b"\n")
        self._pending = rest
        self._messages += (messages := [json.loads(line) for line in lines])
        self._is_ending = self._is_ending or any("is_last" in message for message in messages)

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()


def run_child(
    function: str,
    document: Any,
    *,
    title: str = "",
    timeout_seconds: float | None = None,
    on_event: OnEvent | None = None,
    environment: Mapping[str, str] | None = None,
    memory_bytes: int | None = None,
    stop_requested: Callable[[], str | None] | None = None,
) -> Any:
    """Run a function in a child process and return its result; an interrupt ends the child.

    Args:
        function, document, title, environment, memory_bytes: as `ChildProcess` has them.
        timeout_seconds, on_event: as `ChildProcess.result` has them.
        stop_requested: asked several times a second; the child is killed where it returns a reason.

    Raises:
        LuthierError: the child raised one; it is raised again as the same class.
        OSError: no room was left on a disk.
        MemoryError: the child met its memory limit.
        ChildEndedError: the child died, or its time was up: then it is killed.
        StoppedError: `stop_requested` has returned a reason.
    """
    with (
        ChildProcess(function, document, title=title, environment=environment, memory_bytes=memory_bytes) as child,
        _killed_on(stop_requested, child),
    ):
        return child.result(timeout_seconds=timeout_seconds, on_event=on_event)


@contextlib.contextmanager
def _killed_on(stop_requested: Callable[[], str | None] | None, child: ChildProcess) -> Iterator[None]:
    """Within the block the child is killed where a stop is requested: what it does may take minutes."""
    if stop_requested is None:
        yield
        return
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_LOOK_SECONDS):
            if stop_requested():
                child.kill()
                return

    start_daemon(watch, "child-stop")
    try:
        yield
    except ChildEndedError as error:
        if reason := stop_requested():
            raise StoppedError(reason) from error
        raise
    finally:
        is_over.set()


def comes_of_killed_child(error: BaseException) -> bool:
    """Whether an error, or one that has caused it, is a child that the system has killed: it may pass another time."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ChildEndedError) and cause.is_killed:
            return True
        cause = cause.__cause__
    return False


def wait_any(children: Sequence[ChildProcess], timeout_seconds: float | None) -> list[ChildProcess]:
    """The children that have sent something or hung up, waiting for the first; none where the time is up.

    `receive(0)` takes in what each has sent: no messages, and `has_hung_up` set, where it has ended.
    """
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child, selectors.EVENT_READ)
        ready = {key.fd for key, _ in selector.select(timeout_seconds)}
    return [child for child in children if child.fileno() in ready]


def result_of(message: Mapping[str, Any]) -> Any:
    """The result in a message.

    Raises:
        LuthierError: the message carries one.
        OSError: the child had no room left on a disk.
        MemoryError: the child met its memory limit.
    """
    if "error" in message:
        raise error_from(message["error"])
    if "disk_full" in message:
        number, words, file = message["disk_full"]
        raise OSError(number, words, *([] if file is None else [file]))
    if "out_of_memory" in message:
        raise MemoryError(f"more than {message['out_of_memory'] / 2**30:g} GiB")
    return message["result"]


def how_it_ended(returncode: int) -> str:
    """The end of a process, as the rest of a sentence; negative for the signal that ended it."""
    return f"was ended by {signal_name(-returncode)}" if returncode < 0 else f"ended with exit code {returncode}"


def signal_name(number: int) -> str:
    """SIGKILL for 9; `signal 70` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _open_log(log: Path | str | None) -> IO[bytes] | None:
    if log == "inherit":
        return None
    # a+b: the parent reads the tail, and several children may append to one file.
    return tempfile.TemporaryFile() if log is None else Path(log).open("a+b")


def _python_path(given: str | None) -> str:
    """Where this process imports from, then what PYTHONPATH says. An empty entry represents the current folder."""
    paths = [path or str(Path.cwd()) for path in sys.path] + (given.split(os.pathsep) if given else [])
    return os.pathsep.join(dict.fromkeys(paths))
