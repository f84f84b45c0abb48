"""Waiting threads sleep soon, unless the user wants otherwise."""

from __future__ import annotations

import os
import threading

import pytest

from luthier.core.errors import BusyError
from luthier.core.system.process_setup import start_daemon, wait_briefly


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_sets_a_short_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "20000"


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    wait_briefly()
    assert os.environ[name] == value
    assert os.environ.get("GOMP_SPINCOUNT") == ("7" if name == "GOMP_SPINCOUNT" else None)


def test_a_thread_that_cannot_be_started_is_an_error_of_a_busy_system(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    assert start_daemon(done.set, "one").daemon
    assert done.wait(60)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(BusyError, match="no more threads"):
        start_daemon(done.set, "two")
