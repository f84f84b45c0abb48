"""What is found out once, in the background, and what becomes of it when something goes wrong."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from luthier.core.errors import BusyError, DataError, WorkError
from luthier.platform.home.context import Context
from luthier.platform.processes import result_cache
from luthier.platform.processes.result_cache import Subject, cached_result, start_computation, store_result
from luthier.testing.servers import wait_for

SUBJECT = Subject("ab" * 32, "look", {"suffix": ".jsonl"})


def state(context: Context) -> str:
    return cached_result(context, SUBJECT).state


def test_an_answer_is_found_out_once_while_others_look(context: Context) -> None:
    go, asked = threading.Event(), []

    def answer() -> dict[str, Any]:
        asked.append(1)
        go.wait(60)
        return {"n": 1}

    assert state(context) == "unasked"
    first, second = start_computation(context, SUBJECT, answer), start_computation(context, SUBJECT, answer)
    assert (first.state, second.state, first.at) == ("running", "running", second.at)
    assert state(context) == "running"
    go.set()
    wait_for(lambda: state(context) == "answered")
    found = cached_result(context, SUBJECT)
    assert (found.answer, asked) == ({"n": 1}, [1])
    assert found.at >= first.at
    assert cached_result(context, Subject(SUBJECT.sha256, "look", {"suffix": ".csv"})).state == "unasked"


def test_the_version_of_the_package_is_read_once_for_a_list_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def version(name: str) -> str:
        read.append(name)
        return "9.9"

    monkeypatch.setattr(result_cache, "version", version)
    result_cache._version.cache_clear()
    try:
        keys = {Subject(SUBJECT.sha256, "look", {"number": number}).key for number in range(5)}
    finally:
        result_cache._version.cache_clear()
    assert len(keys) == 5
    assert read == ["luthier"]


def test_an_error_of_the_file_is_kept_and_one_of_the_machine_is_told(context: Context) -> None:
    def bad() -> dict[str, Any]:
        raise DataError("2 rows are wrong", expected="good ones", do="repair them")

    def busy() -> dict[str, Any]:
        raise WorkError("busy", expected="time", do="ask again")

    def bug() -> dict[str, Any]:
        raise KeyError("x")

    for answer, words in ((bad, "2 rows are wrong"), (busy, "busy"), (bug, "internal error")):
        start_computation(context, SUBJECT, answer)
        wait_for(lambda: state(context) == "failed")
        error = cached_result(context, SUBJECT).error
        assert error is not None
        assert words in error.came
        assert SUBJECT.path(context).exists() == (answer is bad)
        SUBJECT.path(context).unlink(missing_ok=True)
    assert store_result(context, SUBJECT, lambda: {"n": 2}).answer == {"n": 2}


def test_what_was_cut_short_counts_as_unasked(context: Context) -> None:
    store_result(context, SUBJECT, lambda: {"n": 2})
    path = SUBJECT.path(context)
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    assert state(context) == "unasked"
    assert list(path.parent.iterdir()) == [path], "nothing half-written lies about"


def test_what_could_not_be_started_does_not_count_as_running(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BusyError, match="no more threads"):
            start_computation(context, SUBJECT, lambda: {"n": 3})
    assert state(context) == "unasked"
    start_computation(context, SUBJECT, lambda: {"n": 3})
    wait_for(lambda: state(context) == "answered")
