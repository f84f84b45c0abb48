"""Programs that are looked after: what crashes comes back, what is to end ends, and nothing is left behind."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.jobs import supervisor as module
from luthier.jobs.supervisor import Program, Supervisor


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
    deadline = time.monotonic() + 20
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
    code = "from luthier.jobs.supervisor import end_with; end_with(1 << 22); open(__import__('sys').argv[1], 'w')"
    looked_after = Supervisor([program("p", code, tmp_path / "lived")], tell=lambda _: None)
    looked_after.start()
    while looked_after.exit_code("p") is None:
        time.sleep(0.02)
    looked_after.stop()
    assert looked_after.exit_code("p") == 1
    assert not (tmp_path / "lived").exists()
