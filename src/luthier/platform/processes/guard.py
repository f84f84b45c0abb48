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
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from luthier.core.system.clock_jump import elapsed
from luthier.core.system.process_setup import dying_with_parent, end_with

if TYPE_CHECKING:
    from luthier.core.child_process.forked_program import ForkedChild

    Child = subprocess.Popen[bytes] | ForkedChild

LOST = 70
"""Exit code where the worker was lost."""
_FORKED: Final = "luthier.core.child_process.forked_program"


def main(arguments: list[str]) -> int:
    """Start the command, look after it, and return its exit code."""
    deadline, command = float(arguments[0]), arguments[1:]
    # The self-pipe trick: select would otherwise sleep through a SIGCHLD that comes just before it.
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # A handler is needed: signals that are ignored by default write nothing to the wake-up descriptor.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the worker, who says what is to become of the child
    child = _forked(command, (woken, wake)) or _executed(command)
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()
    is_lost = not _look_after(child, deadline, woken)
    with contextlib.suppress(ProcessLookupError):
        # Grandchildren, such as data loaders, stay in the group when the child itself has ended.
        os.killpg(child.pid, signal.SIGKILL)
    code = child.wait()
    code = LOST if is_lost else code if code >= 0 else 128 - code
    # The worker hears it from the fork server, which may have died. Not by the buffer of stdout: what is left in it
    # where the worker is gone would change the exit code.
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{code}\n".encode())
    return code


def _executed(command: Sequence[str]) -> Child:
    die_with_guard = dying_with_parent()

    def prepare() -> None:
        os.setsid()
        die_with_guard()  # should the guard itself be killed

    # stdout of the child goes to stderr, since the guard's own stdout carries two numbers and nothing else.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=prepare)


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
        os.setsid()
        end_with(guard)
        os.close(ready)
        # What an exec does: handlers go back to the default, and what is ignored stays ignored.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
        # Empty the pipe, or select would return immediately for ever.
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
                if line == b"k":
                    os.killpg(child.pid, signal.SIGKILL)
                elif line == b"t":
                    child.terminate()
                else:
                    deadline = float(line)
        if elapsed() >= deadline:
            return child.poll() is not None
    return True


if __name__ == "__main__":
    # Not sys.exit: a guard that was forked would spend time on taking down libraries that it never used.
    os._exit(main(sys.argv[1:]))
