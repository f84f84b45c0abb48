"""A process that was forked from loaded libraries becomes a program: what `python -m MODULE` would have started.

The program ends as any other does: the fork happens deep in its parent's code, but `BecomeProgram` unwinds that, and
`run_programs` at the bottom runs the next one up to the ordinary end of the interpreter.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path

from luthier.core.system.facilities import fork, posix


class ForkedChild:
    """A child of this process that was forked, not executed: the part of `subprocess.Popen` that a guard needs.

    Args:
        pid: What `os.fork` returned.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code; None while it runs. Negative: by that signal."""
        return self._reap(posix.WNOHANG)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        code = self._reap(0)
        assert code is not None
        return code

    def terminate(self) -> None:
        """Send it SIGTERM; nothing where it has ended."""
        # poll() first: once the child is reaped, its number may belong to another process.
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _reap(self, options: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self._code = int(posix.waitstatus_to_exitcode(status))
        return self._code


class BecomeProgram(BaseException):
    """Raised in a process that was just forked: it leaves the program of its parent and runs another one.

    No Exception, since the program of the parent must not catch it.

    Args:
        command: `[sys.executable, "-m", MODULE, ...]`.
    """

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__()
        self.command = tuple(command)


def is_program(command: Sequence[str]) -> bool:
    """Whether a command line is a module run by this interpreter without options, the only kind that can be forked."""
    return len(command) > 2 and command[0] == sys.executable and command[1] == "-m"


def fork_into(enter: Callable[[int], None]) -> int:
    """Fork, and continue in the parent once the signals that it sends to the child's group will arrive.

    Args:
        enter: Run in the child. It gets a descriptor that it has to close as soon as it leads its group.

    Returns:
        The child's process id; 0 in the child, after `enter`.
    """
    reading, writing = os.pipe()
    try:
        pid = fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid:
        os.close(writing)
        os.read(reading, 1)  # the end of the file: the child has closed it, or died
        os.close(reading)
        return pid
    try:
        os.close(reading)
        enter(writing)
    except BaseException:  # noqa: BLE001 - no error may reach the code of the parent
        traceback.print_exc()
        os._exit(1)
    return 0


def become(command: Sequence[str]) -> BecomeProgram:
    """Make a process that was just forked look like one that was just started; raise what it returns.

    Args:
        command: The program that it is going to run.
    """
    sys.orig_argv = list(command)
    # `random` and `secrets` see the fork themselves; NumPy's global generator would be the same in every program.
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(line_buffering=stream.isatty())  # type: ignore[union-attr]
    show_as(command)
    return BecomeProgram(command)


def run_programs(command: Sequence[str]) -> None:
    """Run programs as `python -m` does, the next one where a process that one of them forked has become another."""
    following: Sequence[str] | None = command
    become(command)
    while following is not None:
        following = _run_once(following)


def _run_once(command: Sequence[str]) -> Sequence[str] | None:
    name = command[2]
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{sys.executable}: No module named {name}")
    # Not runpy, which warns about a module that was imported before, as the libraries do with the guard's.
    program = types.ModuleType("__main__")
    program.__dict__.update(
        __file__=spec.origin, __spec__=spec, __loader__=spec.loader, __package__=spec.parent, __cached__=spec.cached
    )
    sys.argv = [spec.origin or name, *command[3:]]
    sys.modules["__main__"] = program
    try:
        exec(spec.loader.get_code(spec.name), program.__dict__)  # type: ignore[attr-defined]  # noqa: S102
    except BecomeProgram as other:
        return other.command
    return None


def show_as(command: Sequence[str]) -> None:
    """Have process lists show this command line, by writing it where the kernel looks for it."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc_pid_stat(5)
    size = end - start
    if start == 0 or size <= 0:
        return
    text = b"\0".join(os.fsencode(word) for word in command)[: size - 1]
    ctypes.memmove(start, text.ljust(size, b"\0"), size)
