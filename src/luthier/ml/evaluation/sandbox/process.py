"""A child process that can be talked to by lines of JSON, and dies at its deadline."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from luthier.core.errors import RequestError
from luthier.ml.evaluation.sandbox.bubblewrap import bubblewrap, interpreter, library_paths, signal_of, wrapped
from luthier.ml.evaluation.sandbox.calls import filter_program

_MAX_REPLY_BYTES = 2**22
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_SMALL_DEVICES = ("/dev/null", "/dev/urandom")


class ChildError(Exception):
    """The child gave no reply.

    Attributes:
        is_late: its time was up.
        signal_number: the signal that ended it, 0 where it ended itself.
    """

    def __init__(self, *, is_late: bool = False, signal_number: int = 0) -> None:
        self.is_late, self.signal_number = is_late, signal_number
        super().__init__("timeout" if is_late else f"ended by signal {signal_number}")


def cannot_isolate() -> RequestError:
    """The error of a machine on which code or queries of others cannot be run safely."""
    return RequestError(
        "this machine cannot lock a process down",
        expected="Linux on x86_64 or aarch64 with seccomp filters",
        do="judge code and queries on such a machine, or take the task out of the suite",
    )


class Child:
    """One locked-down process that runs `script` of this folder. Use it in a `with` block.

    Args:
        script: file name of the script to run.
        seconds: CPU time that the whole child may take.
        most_memory_bytes: limit of its address space.
        placed: files that are put into its folder under these names, which is then all that it can read; None leaves it
            Python's own library, too.

    Raises:
        OSError: the process cannot be started, or a file cannot be placed.
    """

    def __init__(
        self, script: str, *, seconds: float, most_memory_bytes: int, placed: Mapping[str, Path] | None = None
    ) -> None:
        here = Path(__file__).parent
        self._folder = tempfile.mkdtemp(prefix="luthier-sandbox-")
        for name, path in (placed or {}).items():
            _place(path, Path(self._folder) / name)
        root = None if placed is None else self._folder
        self.policy = _policy(seconds, most_memory_bytes, [str(here), *([root] if root else [])], root)
        # As -I, which would leave the hash seed to chance: with it, an answer is judged alike each time.
        arguments = ["-P", "-s", "-S", str(here / script)]
        outer = bubblewrap()
        self.is_wrapped = outer.path is not None
        if outer.path is None:
            command = [sys.executable, *arguments]
        else:
            seen = [*self.policy["readable"], *library_paths(), self._folder]
            command = wrapped(outer.path, [interpreter(), *arguments], readable=seen, cwd=self._folder)
        # Not `core.child_process`: what a model wrote runs with an empty environment and must not import this project.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},
            cwd=self._folder,
            # A session of its own makes its id a process group, which close() kills as a whole.
            start_new_session=True,
            close_fds=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        # A child that does not read would block a write of more than the pipe's buffer for ever, past any deadline.
        os.set_blocking(self._to, False)
        self._pending = b""

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send one message and wait for the reply.

        Args:
            message: what JSON can hold; it is sent as one line.
            seconds: most time for sending and reply together.

        Raises:
            ChildError: no reply, or one that is no line of JSON.
        """
        deadline = time.monotonic() + seconds
        self._send(json.dumps(message).encode() + b"\n", deadline)
        try:
            reply = json.loads(self._line(deadline))
        # The reply comes from code that a model wrote: it may be no JSON, or nested without end.
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise ChildError
        return reply

    def close(self) -> None:
        """End the child and all that belongs to it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # Also reads what is left in the pipe and reaps the process, so that no zombie remains.
        self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            if not select.select([], [self._to], [], max(0.0, deadline - time.monotonic()))[1]:
                raise ChildError(is_late=True)
            try:
                view = view[os.write(self._to, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._ended() from None

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._pending:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ChildError(is_late=True)
            more = os.read(self._from, 65536)
            # The limit keeps a child that writes without a line end from filling this process's memory.
            if not more or len(self._pending) > _MAX_REPLY_BYTES:
                raise self._ended()
            self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _ended(self) -> ChildError:
        """Why there is no reply; a child that closed its pipe and goes on is ended by `close`."""
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return ChildError()
        number = signal_of(code) if self.is_wrapped else max(0, -code)
        return ChildError(is_late=number == signal.SIGXCPU, signal_number=number)


def _place(path: Path, target: Path) -> None:
    """The file under another name, without a copy of its bytes where the disk allows that."""
    try:
        os.link(path, target)
    except OSError:  # another disk, or a file of another user
        shutil.copyfile(path, target)


def _policy(seconds: float, most_memory_bytes: int, readable: Sequence[str], root: str | None) -> dict[str, Any]:
    library = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(sys.base_prefix) / "lib")]
    program = filter_program(platform.machine()) if sys.platform == "linux" else None
    return {
        # No limit of processes, which would count all of the user's: the filter refuses new ones, memory ends threads.
        "limits": {
            # Two seconds for the start of Python; the deadline in wall time is the parent's.
            "RLIMIT_CPU": int(seconds) + 2,
            "RLIMIT_AS": most_memory_bytes,
            # 0 forbids growing any file; pipes are not counted.
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": 32,
            "RLIMIT_CORE": 0,
        },
        "root": root,
        "readable": [*readable, *library, *_SYSTEM_LIBRARIES, *_SMALL_DEVICES],
        "filter": (program or b"").hex(),
    }
