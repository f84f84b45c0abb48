"""Forked workers: what they answer, and what is left of them when they end, fail or are not needed any more."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from luthier.core.child_process.forked_workers import Answer, ForkedWorkers, LostWorkerError, Note

Make = Callable[..., ForkedWorkers]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[ForkedWorkers] = []

    def start(answer: Answer, num: int = 2, prepare: Callable[[], None] = lambda: None) -> ForkedWorkers:
        made.append(ForkedWorkers(answer, kind="a worker of the test", prepare=prepare))
        made[-1].start(num)
        return made[-1]

    yield start
    for workers in made:
        workers.close()


def sleep(seconds: float, _note: Note) -> float:
    time.sleep(seconds)
    return seconds


def answer_of(workers: ForkedWorkers, request: Any, note: Note = lambda _: None) -> Any:
    workers.give(workers.workers[0], request)
    while not (found := workers.answers(note)):
        pass
    ((worker, asked, answer),) = found
    assert worker is workers.workers[0]
    assert asked == request
    return answer


def test_a_worker_has_what_was_in_memory_at_the_fork(make: Make) -> None:
    held = {"value": 1.0}
    workers = make(lambda request, _: [held["value"] + request, os.getpid()])
    held["value"] = 2.0
    third = 1 / 3
    found, pid = answer_of(workers, third)
    assert found == 1.0 + third  # every bit of a double crosses
    assert pid == workers.workers[0].process.pid != os.getpid()


def test_notes_come_before_the_answer_and_large_answers_come_whole(make: Make) -> None:
    def answer(request: int, note: Note) -> str:
        for number in range(request):
            note(number)
        return "x" * (1 << 20)

    seen: list[int] = []
    assert answer_of(make(answer), 3, seen.append) == "x" * (1 << 20)
    assert seen == [0, 1, 2]


def test_whoever_is_done_first_is_heard_first(make: Make) -> None:
    reading, writing = os.pipe()

    def answer(request: str, _note: Note) -> str:
        if request == "slow":
            os.read(reading, 1)
        return request

    workers = make(answer)
    slow, quick = workers.workers
    workers.give(slow, "slow")
    workers.give(quick, "quick")
    assert workers.answers(lambda _: None) == [(quick, "quick", "quick")]
    os.write(writing, b"x")
    assert workers.answers(lambda _: None) == [(slow, "slow", "slow")]
    assert slow.request is quick.request is None
    os.close(reading)
    os.close(writing)


def test_a_failure_says_what_was_raised(make: Make) -> None:
    def answer(request: int, _note: Note) -> float:
        return 1 / request

    workers = make(answer)
    with pytest.raises(LostWorkerError, match="a worker of the test failed with ZeroDivisionError: division by zero"):
        answer_of(workers, 0)


def test_a_worker_that_is_killed_is_missed(make: Make) -> None:
    workers = make(sleep)
    workers.give(workers.workers[1], 60)
    os.kill(workers.workers[1].process.pid, signal.SIGKILL)
    with pytest.raises(LostWorkerError, match="a worker of the test was ended by SIGKILL"):
        workers.answers(lambda _: None)


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").is_file(), reason="other systems have no such score")
def test_where_memory_is_short_the_kernel_ends_a_worker_first(make: Make) -> None:
    """By its score: the larger one goes. The parent's is as it was."""
    score = Path("/proc/self/oom_score_adj")
    before = int(score.read_text())
    workers = make(lambda _request, _note: int(score.read_text()))
    assert answer_of(workers, "score") == min(1000, before + 300)
    assert int(score.read_text()) == before


def test_one_that_ended_before_it_was_asked_is_missed(make: Make) -> None:
    workers = make(lambda request, _: request)
    process = workers.workers[0].process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(LostWorkerError, match="SIGKILL"):
        answer_of(workers, 1)


def test_preparing_that_fails_ends_a_worker(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    def prepare() -> None:
        raise MemoryError("no room")

    workers = make(lambda request, _: request, prepare=prepare)
    with pytest.raises(LostWorkerError, match="ended with exit code 1"):
        answer_of(workers, 1)
    assert "MemoryError: no room" in capfd.readouterr().err


def test_a_wish_to_stop_is_for_the_parent(make: Make) -> None:
    workers = make(lambda request, _: request)
    assert answer_of(workers, 1) == 1  # it has begun
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(workers.workers[0].process.pid, number)
    assert answer_of(workers, 2) == 2


def test_closing_waits_for_all_and_ends_one_that_works(make: Make) -> None:
    workers = make(sleep)
    assert answer_of(workers, 0) == 0
    workers.give(workers.workers[1], 600)
    pids = [worker.process.pid for worker in workers.workers]
    workers.close()
    assert workers.workers == []
    assert not any(psutil.pid_exists(pid) for pid in pids)
    workers.close()


def test_a_thread_may_fork_workers(make: Make) -> None:
    found: list[Any] = []

    def work() -> None:
        workers = make(lambda request, _: request + 1)
        found.append(answer_of(workers, 1))
        workers.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [2]


def test_a_system_without_room_is_a_lost_worker(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(LostWorkerError, match=r"a worker of the test cannot be started: .*temporarily unavailable"):
        make(lambda request, _: request)


class Node:
    """An object that a collection alone frees: it refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_there_at_a_fork_is_collected_once_nobody_needs_it(make: Make) -> None:
    """As a model of which a run had workers."""
    node = Node()
    seen = weakref.ref(node)
    workers = make(lambda request, _: [request, seen() is not None])
    assert answer_of(workers, 1) == [1, True]
    workers.close()
    assert gc.isenabled()
    del node
    gc.collect()
    assert seen() is None


def test_a_worker_collects_what_is_its_own_and_writes_to_nothing_that_it_inherited(make: Make) -> None:
    def answer(request: int, _note: Note) -> list[bool]:
        own = weakref.ref(Node())
        gc.collect()
        return [inherited() is None, own() is None, gc.isenabled()]

    gc.disable()  # nothing is collected before the fork
    try:
        inherited = weakref.ref(Node())
        quiet = make(answer)
    finally:
        gc.enable()
    assert answer_of(quiet, 1) == [False, True, False]
    quiet.close()  # later ones would hold its channels open
    assert answer_of(make(lambda request, _: gc.isenabled()), 1) is True
