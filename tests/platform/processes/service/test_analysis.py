"""Processes that answer questions about rows: a server keeps one for the next question."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.clock import wait_until
from tests.vacuous import nonempty

from luthier.core.child_process.process import ChildProcess
from luthier.core.errors import DataError, WorkError
from luthier.platform.home.context import Context
from luthier.platform.processes import analysis
from luthier.platform.processes.analysis import answer_to, persistent_processes


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ChildProcess]:
    """The processes that were started, in order."""
    found: list[ChildProcess] = []

    def start(context: Context, of: Any = analysis._child) -> ChildProcess:
        found.append(of(context))
        return found[-1]

    monkeypatch.setattr(analysis, "_child", start)
    return found


@pytest.fixture
def keeping() -> Iterator[None]:
    with persistent_processes():
        yield


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Any]:
    """A question about two rows."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "spruce"}\n{"text": "maple"}\n')
    return {"file": str(file)}


def test_a_server_keeps_the_process_for_the_next_question(
    context: Context, rows: dict[str, Any], started: list[ChildProcess]
) -> None:
    with persistent_processes():
        looks = [answer_to(context, "look", rows) for _ in range(3)]
        assert [one["num_rows"] for one in looks] == [2, 2, 2]
        (child,) = started
        assert child.is_running
    assert child.returncode == 0, "it ends with the server"


def test_others_start_one_for_each_question(
    context: Context, rows: dict[str, Any], started: list[ChildProcess]
) -> None:
    for _ in range(2):
        answer_to(context, "look", rows)
    assert [one.returncode for one in nonempty(started)] == [0, 0]


def test_what_was_changed_meanwhile_is_read_again(
    context: Context, rows: dict[str, Any], started: list[ChildProcess], keeping: None
) -> None:
    assert answer_to(context, "look", rows)["num_rows"] == 2
    with Path(rows["file"]).open("a") as file:
        file.write('{"text": "alder"}\n')
    assert answer_to(context, "look", rows)["num_rows"] == 3
    assert len(started) == 1


def test_it_ends_where_no_question_comes(
    context: Context,
    rows: dict[str, Any],
    started: list[ChildProcess],
    keeping: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(analysis, "_KEEP_SECONDS", 0.05)
    answer_to(context, "look", rows)
    wait_until(lambda: started[0].returncode == 0)
    assert answer_to(context, "look", rows)["num_rows"] == 2
    assert len(started) == 2


def test_another_home_or_environment_has_another_process(
    context: Context,
    rows: dict[str, Any],
    started: list[ChildProcess],
    keeping: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer_to(context, "look", rows)
    with Context.open(tmp_path / "other") as other:
        answer_to(other, "look", rows)
        wait_until(lambda: started[0].returncode == 0)
        monkeypatch.setenv("LUTHIER_DATA_WORKERS", "1")
        answer_to(other, "look", rows)
    wait_until(lambda: started[1].returncode == 0)
    assert len(started) == 3
    assert started[2].is_running


def test_an_error_is_that_of_the_question_and_the_process_answers_the_next(
    context: Context, rows: dict[str, Any], started: list[ChildProcess], keeping: None, tmp_path: Path
) -> None:
    (tmp_path / "broken.jsonl").write_text("{\n")
    with pytest.raises(DataError):
        answer_to(context, "look", {"file": str(tmp_path / "broken.jsonl")})
    assert answer_to(context, "look", rows)["num_rows"] == 2
    assert len(started) == 1


def test_one_that_has_died_is_followed_by_another(
    context: Context, rows: dict[str, Any], started: list[ChildProcess], keeping: None
) -> None:
    answer_to(context, "look", rows)
    os.kill(started[0].pid, 9)
    started[0].wait()
    assert answer_to(context, "look", rows)["num_rows"] == 2
    with pytest.raises(WorkError, match="ended without an answer"):
        answer_to(context, "look", {})  # the process ends by a bug
    assert answer_to(context, "look", rows)["num_rows"] == 2
    assert len(started) == 3


def test_of_two_at_once_one_is_kept(
    context: Context,
    rows: dict[str, Any],
    started: list[ChildProcess],
    keeping: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both, answer = threading.Barrier(2, timeout=120), analysis._answer_of

    def together(*asked: Any) -> dict[str, Any]:
        both.wait()
        return answer(*asked)

    monkeypatch.setattr(analysis, "_answer_of", together)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: answer_to(context, "look", rows), range(2)))
    assert [one["num_rows"] for one in found] == [2, 2]
    assert len(started) == 2
    wait_until(lambda: sum(one.is_running for one in started) == 1)


def test_what_measures_the_machine_has_a_process_of_its_own(
    context: Context, started: list[ChildProcess], keeping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "_answer_of", lambda *_: {"machine": "as it is"})
    for _ in range(2):
        assert answer_to(context, "machine", {}) == {"machine": "as it is"}
    assert [one.returncode for one in nonempty(started)] == [0, 0]
