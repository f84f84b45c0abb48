"""A child process behind a queue: what is sent and heard, and in which order it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from luthier.platform.processes.queued_process import QueuedProcess

SECONDS = 120.0


class Child:
    """Answers each document with an event of it, until it is ended."""

    pid = 7

    def __init__(self, log: list[str]) -> None:
        self.log, self.has_hung_up = log, False
        self._inbox: list[dict[str, Any]] = []
        self._has_more = threading.Semaphore(0)

    def send(self, document: dict[str, Any]) -> None:
        self._inbox.append(document)
        self._has_more.release()

    def receive(self, timeout_seconds: float) -> list[dict[str, Any]]:
        if not self._has_more.acquire(timeout=timeout_seconds) or self.has_hung_up:
            return []
        document = self._inbox.pop(0)
        return [document if "failed" in document else {"event": document["say"]}]

    def hang_up(self) -> None:
        self.has_hung_up = True
        self._has_more.release()

    def kill(self) -> None:
        self.log.append("kill")

    def close(self) -> None:
        self.log.append("close")


class Sayer(QueuedProcess):
    def __init__(self, *, starts: bool = True, is_over: Callable[[], bool] = lambda: False) -> None:
        self.log: list[str] = []
        self.starts, self.is_over, self.is_silent = starts, is_over, list[bool]()
        self.has_failed_rest, self.unwanted = threading.Event(), set[str]()
        super().__init__("sayer", "the process that says", look_seconds=0.01)

    def start(self) -> Any:
        if not self.starts:
            raise OSError("no memory")
        return Child(self.log)

    def hear(self, event: Any) -> None:
        self.log.append(event)

    def is_wanted(self, document: dict[str, Any]) -> bool:
        return document.get("say") not in self.unwanted

    def is_done(self, *, is_silent: bool) -> bool:
        self.is_silent.append(is_silent)
        return self.is_over()

    def end(self) -> Callable[[], None]:
        with self.lock:
            self.has_ended = True
        self.log.append("end")

        def fail_rest() -> None:
            self.log.append("rest")
            self.has_failed_rest.set()

        return fail_rest


def test_what_is_sent_is_heard_in_order_and_the_rest_fails_once_the_process_is_gone() -> None:
    sayer = Sayer()
    for word in ("a", "b"):
        sayer.put({"say": word})
    sayer.put({"failed": True})
    assert sayer.has_failed_rest.wait(SECONDS)
    assert sayer.log == ["a", "b", "end", "kill", "close", "rest"]
    assert (sayer.has_ended, sayer.pid) == (True, 7)


@pytest.mark.parametrize(
    ("replaced_at", "sent", "waits"),
    [(0, ["a", "b", "c"], 3), (1, ["b", "c"], 1), (2, ["b", "c"], 2)],
    ids=["never", "at once", "later"],
)
def test_one_that_gathers_waits_for_those_that_come_with_it_until_they_replace_it(
    monkeypatch: pytest.MonkeyPatch, replaced_at: int, sent: list[str], waits: int
) -> None:
    sayer = Sayer()
    num_waits, sleep = 0, time.sleep

    def rest(seconds: float) -> None:
        nonlocal num_waits
        if threading.current_thread().name != "sayer-asks":
            sleep(seconds)
            return
        num_waits += 1
        if num_waits == replaced_at:
            sayer.unwanted.add("a")
        if num_waits <= 2:  # something comes in each of the first two waits, so that there may be a third one
            sayer.put({"say": "bc"[num_waits - 1]})

    monkeypatch.setattr(time, "sleep", rest)
    sayer.put({"say": "a"}, gathers=True)
    end = time.monotonic() + SECONDS
    while len(sayer.log) < len(sent) - (replaced_at == 1):
        assert time.monotonic() < end, sayer.log
        sleep(0.001)
    if replaced_at == 1:
        sayer.put({"say": "c"})
    sayer.put({"failed": True})
    assert sayer.has_failed_rest.wait(SECONDS)
    assert (sayer.log[: len(sent)], num_waits) == (sent, waits)


def test_it_ends_where_it_is_not_needed_or_closed() -> None:
    over = threading.Event()
    unneeded, closed = Sayer(is_over=over.is_set), Sayer()
    unneeded.put({"say": "a"})
    over.set()
    assert unneeded.has_failed_rest.wait(SECONDS)
    assert {True} <= {*unneeded.is_silent} or "a" in unneeded.log
    closed.close()
    assert closed.has_failed_rest.wait(SECONDS)
    assert closed.log == ["end", "kill", "close", "rest"]


def test_one_that_cannot_be_started_fails_what_waits(capfd: pytest.CaptureFixture[str]) -> None:
    sayer = Sayer(starts=False)
    assert sayer.has_failed_rest.wait(SECONDS)
    assert (sayer.log, sayer.pid) == (["end", "rest"], None)
    assert "the process that says cannot be started or heard: no memory" in capfd.readouterr().err
