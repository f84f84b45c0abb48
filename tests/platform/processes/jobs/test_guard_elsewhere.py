"""A guard where no signal says that a child has ended, no pipe can be selected, and nothing dies with its parent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.platform.processes.jobs.test_guard import FAMILY, FOR_EVER, gone, until

from luthier.platform.processes.guard import LOST

GUARD = (
    "import os, sys\n"
    "from luthier.core.system import facilities, process_setup\n"
    "facilities.child_signal = lambda: None\n"
    "facilities.is_linux = lambda: False\n"
    "process_setup._LOOK_SECONDS = 0.01\n"
    "from luthier.platform.processes import guard\n"
    "guard._LOOK_SECONDS = 0.01\n"
    "os._exit(guard.main(sys.argv[1:]))\n"
)
FOLLOW = (
    "from luthier.core.system import facilities, process_setup\n"
    "facilities.is_linux = lambda: False\n"
    "process_setup._LOOK_SECONDS = 0.01\n"
    "process_setup.follow_starter()\n"
)


@contextmanager
def guarded(code: str, seconds: float = 300.0) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A guard with its child, and the processes that the child names."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", GUARD, until(seconds), sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as guard:
        assert guard.stderr is not None
        try:
            yield guard, [int(word) for word in guard.stderr.readline().split()]
        finally:
            guard.kill()


def test_the_exit_code_is_the_childs_and_what_it_started_ends_with_it() -> None:
    with guarded(FAMILY + "sys.exit(7)") as (guard, family):
        assert guard.wait(120) == 7
        assert gone(family)


@pytest.mark.parametrize(("word", "code"), [(b"k\n", 128 + 9), (b"t\n", 3), (b"0\n", LOST), (None, LOST)])
def test_the_worker_ends_it(word: bytes | None, code: int) -> None:
    polite = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(3))\n"
    with guarded(polite + FOR_EVER) as (guard, family):
        assert guard.stdin is not None
        if word is None:
            guard.stdin.close()
        else:
            guard.stdin.write(word)
        assert guard.wait(120) == code
        assert gone(family)


def test_a_child_of_ours_ends_with_a_guard_that_was_killed() -> None:
    code = f"{FOLLOW}import os, sys, time\nprint(os.getpid(), file=sys.stderr, flush=True)\ntime.sleep(300)"
    with guarded(code) as (guard, child):
        guard.kill()
        guard.wait(120)
        assert gone(child)
