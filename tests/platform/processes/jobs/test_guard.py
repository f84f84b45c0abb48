"""Nothing outlives its worker: not the child, and not what the child has started.

Each test runs twice: with a guard that is executed and executes its child, and with both of them forked.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from luthier.core.child_process.fork_client import ForkServer
from luthier.core.system.clock_jump import elapsed
from luthier.platform.home.settings import LOG_NAME
from luthier.platform.processes.process import Attempt

# A child that starts a grandchild which ignores SIGTERM, and says both their ids.
FAMILY = (
    "import subprocess, sys, os, time\n"
    "grandchild = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); "
    "print(1, flush=True); time.sleep(300)'], stdout=subprocess.PIPE)\n"
    "grandchild.stdout.readline()\n"
    "print(os.getpid(), grandchild.pid, file=sys.stderr, flush=True)\n"
)
# In short sleeps: a signal between Python's look for signals and the system's sleep waits until the sleep ends.
FOR_EVER = FAMILY + "while True: time.sleep(0.05)\n"
# Ends once the file is there: no test has to guess how long a machine takes to get so far.
UNTIL_SEEN = FAMILY + "while not os.path.exists({!r}): time.sleep(0.02)\n"


GUARD = [sys.executable, "-m", "luthier.platform.processes.guard"]
CHILD = [sys.executable, "-m", "tests.platform.processes.jobs.run_code"]


class Executed(subprocess.Popen[bytes]):
    def __init__(self, code: str, seconds: float) -> None:
        pipe = subprocess.PIPE
        command = [*GUARD, until(seconds), *CHILD, code]
        # The environment as Python knows it: pytest loads readline, which sets COLUMNS and LINES behind its back.
        super().__init__(command, env=os.environ, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)


class Forked:
    """What these tests use of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, code: str, seconds: float) -> None:
        ours, theirs = os.pipe()
        with os.fdopen(theirs, "wb") as stderr:
            program = server.start_program([*GUARD, until(seconds), *CHILD, code], stderr=stderr)
        assert program is not None
        self.program, self.stdin, self.stdout, self.stderr = (
            program,
            program.stdin,
            program.stdout,
            os.fdopen(ours, "rb"),
        )

    def poll(self) -> int | None:
        return self.program.poll()

    def wait(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        os.kill(self.program.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            assert pipe is not None
            pipe.close()
        self.program.wait()


Guard = Executed | Forked
Start = Callable[..., Guard]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    told: list[str] = []
    with ForkServer((), tell=told.append, free_variables=("PYTEST_CURRENT_TEST",)) as server:
        server.start()
        yield server
    assert told == []


@pytest.fixture(params=["executed", "forked"])
def start(request: pytest.FixtureRequest) -> Start:
    if request.param == "executed":
        return lambda code, seconds=60.0: Executed(code, seconds)
    if not sys.platform.startswith("linux"):
        pytest.skip("fork servers are Linux's own")
    server = request.getfixturevalue("server")
    return lambda code, seconds=60.0: Forked(server, code, seconds)


def until(seconds: float) -> str:
    """The deadline so many seconds from now."""
    return repr(elapsed() + seconds)


def ids(guard: Guard) -> list[int]:
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
    deadline = time.monotonic() + 120
    while any(map(is_alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def say(guard: Guard, word: bytes) -> None:
    assert guard.stdin is not None
    guard.stdin.write(word + b"\n")


def test_the_exit_code_is_the_childs_and_what_it_started_ends_with_it(start: Start) -> None:
    with start(FAMILY + "sys.exit(7)") as guard:
        family = ids(guard)
        assert guard.wait(60) == 7
        assert gone(family)


@pytest.mark.parametrize(
    "lose",
    [
        lambda guard: guard.stdin.close(),
        lambda guard: say(guard, until(0.2).encode()),  # and no more deadlines
    ],
    ids=["its end of the pipe closes", "its deadline passes"],
)
def test_a_lost_worker_takes_the_whole_family_with_it(start: Start, lose: Callable[[Guard], object]) -> None:
    with start(FOR_EVER) as guard:
        family = ids(guard)
        lose(guard)
        assert guard.wait(60) == 70
        assert gone(family)


def test_later_deadlines_keep_it_alive(start: Start, tmp_path: Path) -> None:
    with start(UNTIL_SEEN.format(str(tmp_path / "go"))) as guard:
        family, first = ids(guard), elapsed() + 0.5
        # Both in one write: however slow this machine is, the second is there before the first has passed.
        say(guard, f"{first!r}\n{until(60)}".encode())
        while elapsed() < first + 0.3:
            time.sleep(0.05)
        assert guard.poll() is None
        (tmp_path / "go").touch()
        assert guard.wait(60) == 0
        assert gone(family)


def test_whoever_only_speaks_does_not_look_alive(start: Start) -> None:
    with start("import signal\nsignal.signal(15, signal.SIG_IGN)\n" + FOR_EVER) as guard:
        family = ids(guard)
        say(guard, until(0.5).encode())
        deadline = time.monotonic() + 60
        with contextlib.suppress(BrokenPipeError):  # it has ended
            while guard.poll() is None and time.monotonic() < deadline:
                say(guard, b"t")
                time.sleep(0.1)
        assert guard.wait(60) == 70
        assert gone(family)


def test_a_deadline_that_comes_in_two_pieces_is_one(start: Start, tmp_path: Path) -> None:
    with start(UNTIL_SEEN.format(str(tmp_path / "go"))) as guard:
        ids(guard)
        assert guard.stdin is not None
        first, words = elapsed() + 2.0, until(60).encode() + b"\n"
        guard.stdin.write(f"{first!r}\n".encode() + words[:3])
        time.sleep(0.3)
        guard.stdin.write(words[3:])
        while elapsed() < first + 0.3:
            time.sleep(0.05)
        (tmp_path / "go").touch()
        assert guard.wait(60) == 0


def test_terminate_reaches_the_child_and_kill_all_of_them(start: Start) -> None:
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
def test_a_killed_guard_takes_its_child_with_it(start: Start) -> None:
    with start("import os, sys, time\nprint(os.getpid(), file=sys.stderr, flush=True)\ntime.sleep(300)") as guard:
        child = ids(guard)
        guard.kill()
        guard.wait(60)
        assert gone(child)


DESCRIBE = (
    "import json, os, signal, sys\n"
    "print(json.dumps([sys.argv[0], sys.orig_argv[:3], {n: str(signal.getsignal(n)) for n in range(1, 32)}, "
    "sorted(n for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)), "
    "os.readlink('/proc/self/fd/0'), os.fstat(1).st_ino == os.fstat(2).st_ino, os.getsid(0) == os.getpid(), "
    "sorted(os.environ.items())]), flush=True)\n"
)


def test_a_forked_child_is_what_the_guard_would_execute(server: ForkServer) -> None:
    seen = []
    for guard in (Executed(DESCRIBE, 60.0), Forked(server, DESCRIBE, 60.0)):
        with guard:
            assert guard.stderr is not None
            seen.append(json.loads(guard.stderr.readline()))
            assert guard.wait(60) == 0
    assert seen[0] == seen[1]


def test_a_guard_says_its_code_where_its_fork_server_has_died(server: ForkServer, tmp_path: Path) -> None:
    command = [*CHILD, "import time, sys\ntime.sleep(0.5)\nsys.exit(75)"]
    with ForkServer((), tell=lambda _: None, free_variables=("PYTEST_CURRENT_TEST",)) as mortal:
        attempt = Attempt(command, tmp_path, elapsed() + 60, mortal)
        assert mortal.pid is not None
        os.kill(mortal.pid, signal.SIGKILL)
        while not attempt.has_ended:
            time.sleep(0.02)
        attempt.close()
    assert attempt.has_to_wait
    assert not attempt.was_lost


@pytest.mark.parametrize("victim", ["guard", "child"])
def test_what_is_killed_is_seen_by_the_worker(server: ForkServer, tmp_path: Path, victim: str) -> None:
    attempt = Attempt([*CHILD, FOR_EVER], tmp_path, elapsed() + 60, server)
    log = tmp_path / LOG_NAME
    while len(log.read_text().split()) < 2:
        time.sleep(0.02)
    family = [int(word) for word in log.read_text().split()]
    os.kill(attempt._guard.pid if victim == "guard" else family[0], signal.SIGKILL)
    while not attempt.has_ended:
        time.sleep(0.02)
    attempt.close()
    assert attempt.was_lost == (victim == "guard")
    assert attempt.how_it_ended().startswith("exit code -9" if victim == "guard" else "SIGKILL")
    assert gone([attempt._guard.pid, *family])
    assert not Path(f"/proc/{attempt._guard.pid}").exists(), "a zombie is left"
