"""A small process between a worker and the process that does the work, so that nothing outlives its worker.

    worker  --pings-->  guard  --starts-->  child (its own group), and all that the child starts

The child's whole group is killed where the worker's end of the pipe closes (it died, however it died), where the
deadline passes that the worker named last (it was stopped, its machine hangs, or it no longer renews its lease), and
once the child itself has ended (what it started must not keep running). The guard imports next to nothing and does
nothing else, so it is never too busy to look.

    python -m luthier.platform.processes.guard DEADLINE COMMAND...      DEADLINE: seconds of `clock_jump.elapsed`
    on stdin, a line each: `DEADLINE` replaces the last one, `t` SIGTERM to the child, `k` SIGKILL to its group
    on stdout, a line each: the process id of the child; at the end its own exit code
    Its exit code is the child's (128 + the signal that ended it).

A guard that a fork server has forked (`core/child_process/fork_server.py`) forks its child in turn, from the libraries
that are loaded already; any other guard executes it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from luthier.core.system import facilities
from luthier.core.system.clock_jump import elapsed
from luthier.core.system.process_setup import dying_with_parent, end_with, environment_of_program, start_daemon

if TYPE_CHECKING:
    from luthier.core.child_process.forked_program import ForkedChild

    Child = subprocess.Popen[bytes] | ForkedChild

LOST = 70
"""Exit code where the worker was lost."""
_FORKED: Final = "luthier.core.child_process.forked_program"


def main(arguments: list[str]) -> int:
    """Start the command, look after it, and return its exit code."""
    deadline, command = float(arguments[0]), arguments[1:]
    pipe: tuple[int, int] | None = None
    if (ended := facilities.child_signal()) is not None:
        # The self-pipe trick: select would otherwise sleep through a SIGCHLD that comes just before it.
        pipe = facilities.wake_pipe()
        # A handler is needed: signals that are ignored by default write nothing to the wake-up descriptor.
        signal.signal(ended, lambda *_: None)
        signal.set_wakeup_fd(pipe[1], warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the worker, who says what is to become of the child
    child = _forked(command, pipe or ()) or _executed(command)
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()
    is_lost = not (_look_after(child, deadline, pipe[0]) if pipe else _look_after_by_thread(child, deadline))
    # Grandchildren, such as data loaders, stay in the group when the child itself has ended.
    facilities.kill_group(child.pid)
    code = child.wait()
    code = LOST if is_lost else code if code >= 0 else 128 - code
    # The worker hears it from the fork server, which may have died. Not by the buffer of stdout: what is left in it
    # where the worker is gone would change the exit code.
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{code}\n".encode())
    return code


def _executed(command: Sequence[str]) -> Child:
    # stdout of the child goes to stderr, since the guard's own stdout carries two numbers and nothing else.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        creationflags=facilities.GROUP_FLAGS,
        env=environment_of_program(),
        preexec_fn=dying_with_parent(),  # should the guard itself be killed
    )


def _forked(command: Sequence[str], own: Sequence[int]) -> Child | None:
    """The child as `_executed` starts it, but forked; None where this guard was executed or the command is no module.

    Args:
        command: The command line of the child.
        own: Descriptors that the child must not inherit; an exec closes them by itself.
    """
    forked = sys.modules.get(_FORKED)  # not imported: a process forked from it has it
    if forked is None or not forked.is_program(command):
        return None
    guard = os.getpid()

    def enter(ready: int) -> None:
        facilities.posix.setsid()
        end_with(guard)
        os.close(ready)
        # What an exec does: handlers go back to the default, and what is ignored stays ignored.
        signal.set_wakeup_fd(-1)
        signal.signal(facilities.signals.SIGCHLD, signal.SIG_DFL)
        for descriptor in own:
            os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, sys.stdin.fileno())
        os.close(nothing)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    if pid := forked.fork_into(enter):
        child: Child = forked.ForkedChild(pid)
        return child
    raise forked.become(command)


def _look_after(child: Child, deadline: float, woken: int) -> bool:
    """Until the child has ended (true) or the worker is lost (false)."""
    stdin = sys.stdin.fileno()
    partial = b""
    while child.poll() is None:
        ready, _, _ = select.select([stdin, woken], [], [], max(0.0, deadline - elapsed()))
        # Empty the pipe, or select would return immediately forever.
        if woken in ready:
            os.read(woken, 4096)
        if stdin in ready:
            said = os.read(stdin, 4096)
            # End of file: the worker has closed its end or died. A child that ended at the same moment has not been
            # lost.
            if not said:
                return child.poll() is not None
            # A read may end within a line: its rest comes with the next one.
            *lines, partial = (partial + said).split(b"\n")
            for line in lines:
                deadline = _obey(child, line, deadline)
        if elapsed() >= deadline:
            return child.poll() is not None
    return True


_LOOK_SECONDS: Final = 0.05


def _look_after_by_thread(child: Child, deadline: float) -> bool:
    """As `_look_after`, where neither pipes can be selected nor a signal says that a child has ended (Windows)."""
    said: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            said.put(line)
        said.put(b"")  # the worker has closed its end or died

    start_daemon(listen, "luthier-guard")
    while child.poll() is None:
        for line in _waiting(said, max(0.0, min(_LOOK_SECONDS, deadline - elapsed()))):
            if not line:
                return child.poll() is not None
            deadline = _obey(child, line.rstrip(b"\n"), deadline)
        if elapsed() >= deadline:
            return child.poll() is not None
    return True


def _waiting(said: queue.SimpleQueue[bytes], seconds: float) -> Iterator[bytes]:
    """What is in the queue, or comes within that time."""
    with contextlib.suppress(queue.Empty):
        yield said.get(timeout=seconds)
        while True:
            yield said.get_nowait()


def _obey(child: Child, line: bytes, deadline: float) -> float:
    """Do what the worker says in a line; returns the deadline from then on."""
    if line == b"k":
        facilities.kill_group(child.pid)
    elif line == b"t":
        facilities.request_stop(child)
    else:
        return float(line)
    return deadline


if __name__ == "__main__":
    # Not sys.exit: a guard that was forked would spend time on taking down libraries that it never used.
    os._exit(main(sys.argv[1:]))
