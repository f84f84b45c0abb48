"""Whoever presses Ctrl-C sees at once what happens now, and what a second Ctrl-C would do."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from luthier.core.system import facilities
from luthier.platform.jobs.attempt import exit_on_sigterm
from luthier.platform.processes.stop_signals import AGAIN, interrupting_signals, stop_signals


def test_the_answer_comes_before_the_work_asks(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_signals(lambda: f"the step under way ends in about 9 s. {AGAIN}") as stop_requested:
        assert stop_requested() is None
        os.kill(os.getpid(), signal.SIGINT)
        # nothing was asked of the work yet
        assert capfd.readouterr().err == f"\nSIGINT: the step under way ends in about 9 s. {AGAIN}\n"
        assert stop_requested() == "SIGINT received"
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == ""  # said once
        assert stop_requested() == "SIGINT received"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_sentence_is_made_when_the_signal_comes(capfd: pytest.CaptureFixture[str]) -> None:
    step = 1
    with stop_signals(lambda: f"step {step} ends") as stop_requested:
        step = 7
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested() == "SIGTERM received"
    assert capfd.readouterr().err == "\nSIGTERM: step 7 ends\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_interrupts_what_asks_for_no_wish(number: signal.Signals) -> None:
    with stop_signals() as stop_requested:
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt), interrupting_signals():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is before
        assert stop_requested() is None


def test_handlers_are_given_back_and_other_threads_take_none() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    found: list[object] = []

    def work() -> None:
        with stop_signals() as stop_requested:
            found.append((stop_requested(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]


def test_what_another_system_sends_for_a_stop_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facilities, "STOP_SIGNALS", (*facilities.STOP_SIGNALS, signal.SIGUSR2))
    before = signal.getsignal(signal.SIGUSR2)
    with stop_signals() as stop_requested:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop_requested() == "SIGUSR2 received"
    with pytest.raises(SystemExit), exit_on_sigterm():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert signal.getsignal(signal.SIGUSR2) is before


@pytest.mark.parametrize("block", [stop_signals, interrupting_signals])
def test_handlers_of_a_program_that_embeds_python_end_no_work(
    block: Callable[[], AbstractContextManager[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python cannot say what they are, so it cannot put them back."""
    kept = {number: signal.getsignal(number) for number in facilities.STOP_SIGNALS}
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    try:
        with block():
            pass
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
