"""Programs that are looked after: what crashes comes back, what is to end ends, and nothing is left behind."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.platform.processes import supervisor as module
from luthier.platform.processes.supervisor import HealthCheck, Program, Supervisor


def program(name: str, code: str, *arguments: object, grace: float = 20.0) -> Program:
    return Program(name, (sys.executable, "-c", code, *map(str, arguments)), grace)


def until(seen: Callable[[], bool]) -> Callable[[], str | None]:
    deadline = time.monotonic() + 60

    def stop() -> str | None:
        assert time.monotonic() < deadline
        return "seen" if seen() else None

    return stop


def is_there(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split())[0] != "Z"
    except FileNotFoundError:
        return False


APPEND = "import sys; open(sys.argv[1], 'a').write('x'); "
WAIT = "import time; time.sleep(600)"


def test_what_ends_by_itself_is_started_again_after_longer_and_longer_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_REST_SECONDS", 0.01)
    starts, told = tmp_path / "starts", list[str]()
    looked_after = Supervisor([program("p", APPEND + "sys.exit(3)", starts)], tell=told.append)
    looked_after.start()
    reason = looked_after.watch(until(lambda: starts.exists() and len(starts.read_text()) == 3))
    looked_after.stop()
    assert reason == "seen"
    assert told[:2] == [f"p ended by itself (exit code 3): started again in {rest} s" for rest in ("0.01", "0.02")]


def test_what_has_ended_thousands_of_times_is_started_again_after_the_longest_rest() -> None:
    told = list[str]()
    looked_after = Supervisor([program("p", "import sys; sys.exit(3)")], tell=told.append)
    looked_after._all[0].num_restarts = 5000  # half a minute each: two days
    looked_after.start()
    looked_after.watch(until(lambda: bool(told)))
    looked_after.stop()
    assert told == ["p ended by itself (exit code 3): started again in 30 s"]


def test_it_is_told_which_signal_has_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    looked_after = Supervisor([program("p", "import os; os.kill(os.getpid(), 9)")], tell=told.append)
    looked_after.start()
    looked_after.watch(until(lambda: bool(told)))
    looked_after.stop()
    assert told[0].startswith("p ended by itself (SIGKILL)")


def test_who_does_not_listen_is_killed_with_all_that_it_has_started(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "open(sys.argv[1], 'w').write(f'{child.pid} '); " + WAIT
    )
    place, told = tmp_path / "pid", list[str]()
    polite = program("polite", APPEND + WAIT, tmp_path / "polite")
    looked_after = Supervisor([polite, program("deaf", code, place, grace=0.2)], tell=told.append)
    looked_after.start()
    looked_after.watch(until(lambda: place.exists() and place.read_text().endswith(" ")))
    looked_after.stop()
    assert told == ["deaf did not end within 0.2 s: killed"]
    assert looked_after.exit_code("polite") == -signal.SIGTERM
    deadline = time.monotonic() + 120
    while is_there(int(place.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupt_while_stopping_ends_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + APPEND + WAIT
    looked_after = Supervisor([program("deaf", code, tmp_path / "up", grace=600)], tell=lambda _: None)
    looked_after.start()
    looked_after.watch(until((tmp_path / "up").exists))

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        looked_after.stop()
    assert looked_after.exit_code("deaf") == -signal.SIGKILL


def test_a_command_that_is_not_there_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_REST_SECONDS", 0.01)
    command, told = tmp_path / "command", list[str]()
    command.write_text("#!/bin/sh\nexit 0\n")
    command.chmod(0o755)
    looked_after = Supervisor([Program("p", (str(command),), 5)], tell=told.append)
    looked_after.start()
    command.unlink()
    looked_after.watch(until(lambda: len(told) == 2))
    looked_after.stop()
    assert "cannot be started" in told[1]


def test_whose_parent_has_gone_already_ends(tmp_path: Path) -> None:
    code = "from luthier.core.parent_death import end_with; end_with(1 << 22); open(__import__('sys').argv[1], 'w')"
    looked_after = Supervisor([program("p", code, tmp_path / "lived")], tell=lambda _: None)
    looked_after.start()
    while looked_after.exit_code("p") is None:
        time.sleep(0.02)
    looked_after.stop()
    assert looked_after.exit_code("p") == 1
    assert not (tmp_path / "lived").exists()


HANGS_ONCE = """
import faulthandler, os, signal, socket, sys, time
faulthandler.register(signal.SIGUSR1, file=open(f"{sys.argv[2]}.{1 + os.path.exists(sys.argv[2])}.stacks", "w"))
if sys.argv[3] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
listening, starts = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
open(starts, "a").write("x")
is_first, num_answers = os.path.getsize(starts) == 1, 0
while True:
    connection = listening.accept()[0]
    if is_first and num_answers == 2:
        time.sleep(600)  # accepts, and never answers again
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n{}")
    connection.close()
    num_answers += 1
    open(starts + ".answers", "a").write("1" if is_first else "2")
"""


@pytest.mark.parametrize("kind", ["polite", "deaf"])
def test_what_hangs_is_ended_and_started_again(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_REST_SECONDS", 0.01)
    starts, answers, told = tmp_path / "starts", tmp_path / "starts.answers", list[str]()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        health = HealthCheck(
            "127.0.0.1", listening.getsockname()[1], every_seconds=0.05, timeout_seconds=0.2, unhealthy_seconds=1.0
        )
        command = (sys.executable, "-c", HANGS_ONCE, str(listening.fileno()), str(starts), kind)
        looked_after = Supervisor(
            [Program("p", command, 0.3, (listening.fileno(),), health=health, stacks=signal.SIGUSR1)], tell=told.append
        )
        looked_after.start()
        looked_after.watch(until(lambda: answers.exists() and answers.read_text().endswith("22222")))
        looked_after.stop()
    assert answers.read_text().startswith("112"), "it is left alone while it answers"
    how = "SIGTERM" if kind == "polite" else "SIGKILL"
    assert told[0].startswith("p is not healthy (no answer within 0.2 s; not healthy for 1 s): ended")
    assert told[1].startswith(f"p has ended ({how}): started again in")
    assert starts.read_text() == "xx"
    assert 'File "<string>"' in (tmp_path / "starts.1.stacks").read_text(), "it has said where it hung"
