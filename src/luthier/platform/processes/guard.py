"""A small process between a worker and the process that does the work, so that nothing outlives its worker.

    worker  --pings-->  guard  --starts-->  child (a group of its own), and whatever the child starts

The child's whole group is killed where the worker's end of the pipe closes (it died, however it died), where the
deadline passes that the worker named last (it was stopped, its machine hangs, or it no longer renews its lease), and
once the child itself has ended (what it started must not go on alone). The guard imports next to nothing and does
nothing else, so it is never too busy to look.

    python -m luthier.platform.processes.guard DEADLINE COMMAND...      DEADLINE: seconds of `clock_jump.elapsed`
    on stdin, a line each: `DEADLINE` replaces the last one, `t` SIGTERM to the child, `k` SIGKILL to its group
    on stdout: the process id of the child, once; its exit code is the child's (128 + the signal that ended it)
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

from luthier.core.system.clock_jump import elapsed
from luthier.core.system.process_setup import dying_with_parent

LOST = 70
"""Exit code where the worker was lost."""


def main(arguments: list[str]) -> int:
    """Start the command, look after it, and return its exit code."""
    deadline, command = float(arguments[0]), arguments[1:]
    # The self-pipe trick: select would otherwise sleep through a SIGCHLD that comes just before it.
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # A handler is needed: signals that are ignored by default write nothing to the wake-up descriptor.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the worker, who says what is to become of the child
    die_with_guard = dying_with_parent()

    def prepare() -> None:
        os.setsid()
        die_with_guard()  # should the guard itself be killed

    # stdout of the child goes to stderr, since the guard's own stdout carries the process id and nothing else.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=prepare)
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()
    is_lost = not _look_after(child, deadline, woken)
    with contextlib.suppress(ProcessLookupError):
        # Grandchildren, such as data loaders, stay in the group when the child itself has ended.
        os.killpg(child.pid, signal.SIGKILL)
    code = child.wait()
    if is_lost:
        return LOST
    return code if code >= 0 else 128 - code


def _look_after(child: subprocess.Popen[bytes], deadline: float, woken: int) -> bool:
    """Until the child has ended (true) or the worker is lost (false)."""
    stdin = sys.stdin.fileno()
    partial = b""
    while child.poll() is None:
        ready, _, _ = select.select([stdin, woken], [], [], max(0.0, deadline - elapsed()))
        # Empty the pipe, or select would return at once for ever.
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
    sys.exit(main(sys.argv[1:]))
