"""Nothing outlives its worker: not the child, and not what the child has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from luthier.core.system.clock_jump import elapsed

# A child that starts a grandchild which ignores SIGTERM, and says both their ids.
FAMILY = (
    "import subprocess, sys, os, time\n"
    "grandchild = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); "
    "print(1, flush=True); time.sleep(300)'], stdout=subprocess.PIPE)\n"
    "grandchild.stdout.readline()\n"
    "print(os.getpid(), grandchild.pid, file=sys.stderr, flush=True)\n"
)
FOR_EVER = FAMILY + "time.sleep(300)\n"


def start(code: str, seconds: float = 60.0) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "luthier.platform.processes.guard", until(seconds), sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )


def until(seconds: float) -> str:
    """The deadline so many seconds from now."""
    return repr(elapsed() + seconds)


def ids(guard: subprocess.Popen[bytes]) -> list[int]:
    assert guard.stderr is not None
    return [int(word) for word in guard.stderr.readline().split()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0] != "Z"


def gone(pids: list[int]) -> bool:
    """Whether all of them end; the kernel may take a moment."""
    deadline = time.monotonic() + 30
    while any(map(is_alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def say(guard: subprocess.Popen[bytes], word: bytes) -> None:
    assert guard.stdin is not None
    guard.stdin.write(word + b"\n")


def test_the_exit_code_is_the_childs_and_what_it_started_ends_with_it() -> None:
    with start(FAMILY + "sys.exit(7)") as guard:
        family = ids(guard)
        assert guard.wait(60) == 7
        assert gone(family)


@pytest.mark.parametrize(
    "lose",
    [
        lambda guard: guard.stdin.close(),
        lambda guard: None,  # no more deadlines
    ],
    ids=["its end of the pipe closes", "its deadline passes"],
)
def test_a_lost_worker_takes_the_whole_family_with_it(lose: Callable[[subprocess.Popen[bytes]], object]) -> None:
    with start(FOR_EVER, seconds=1.5) as guard:
        family = ids(guard)
        lose(guard)
        assert guard.wait(60) == 70
        assert gone(family)


def test_later_deadlines_keep_it_alive() -> None:
    with start(FAMILY + "time.sleep(3)", seconds=1.5) as guard:
        family = ids(guard)
        with contextlib.suppress(BrokenPipeError):  # it has ended
            while guard.poll() is None:
                say(guard, until(1.5).encode())
                time.sleep(0.2)
        assert guard.wait(60) == 0
        assert gone(family)


def test_whoever_only_speaks_does_not_look_alive() -> None:
    with start("import signal\nsignal.signal(15, signal.SIG_IGN)\n" + FOR_EVER, seconds=1.5) as guard:
        family = ids(guard)
        deadline = time.monotonic() + 60
        with contextlib.suppress(BrokenPipeError):  # it has ended
            while guard.poll() is None and time.monotonic() < deadline:
                say(guard, b"t")
                time.sleep(0.1)
        assert guard.wait(0.1) == 70
        assert gone(family)


def test_a_deadline_that_comes_in_two_pieces_is_one() -> None:
    with start(FAMILY + "time.sleep(3)", seconds=1.5) as guard:
        ids(guard)
        assert guard.stdin is not None
        words = until(60).encode() + b"\n"
        guard.stdin.write(words[:3])
        time.sleep(0.3)
        guard.stdin.write(words[3:])
        assert guard.wait(60) == 0


def test_terminate_reaches_the_child_and_kill_all_of_them() -> None:
    polite = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(3))\n" + FOR_EVER
    with start(polite) as guard:
        family = ids(guard)
        say(guard, b"t")
        assert guard.wait(60) == 3
        assert gone(family)
    with start("import signal\nsignal.signal(15, signal.SIG_IGN)\n" + FOR_EVER) as guard:
        family = ids(guard)
        say(guard, b"t")
        say(guard, b"k")
        assert guard.wait(60) == 128 + signal.SIGKILL
        assert gone(family)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's own")
def test_a_killed_guard_takes_its_child_with_it() -> None:
    with start("import os, sys, time\nprint(os.getpid(), file=sys.stderr, flush=True)\ntime.sleep(300)") as guard:
        child = ids(guard)
        guard.kill()
        guard.wait(60)
        assert gone(child)
