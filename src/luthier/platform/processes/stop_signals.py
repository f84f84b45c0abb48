"""SIGTERM and SIGINT as a request to stop, for work with a clean shutdown, and an immediate response to them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from luthier.core.run import StopReason
from luthier.core.system import facilities

AGAIN = "Press Ctrl-C again to end immediately"


@contextmanager
def stop_signals(notice: Callable[[], str] | None = None) -> Iterator[Callable[[], str | None]]:
    """Turn SIGTERM and SIGINT into a flag that the work checks between two steps; a second SIGINT interrupts it.

    In a thread other than the main one (a notebook's, a server's) signals are not ours to take.

    Args:
        notice: what happens now and when, in a sentence. It is called and printed to stderr the moment a signal comes,
            since a step may take a minute, and a person who sees nothing presses Ctrl-C again and loses it.

    Yields:
        A function that says which signal came, None as long as none did.
    """
    wish: list[StopReason] = []
    # signal.signal raises in any other thread.
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in facilities.STOP_SIGNALS}

    def note(number: int, _frame: object) -> None:
        is_first, name = not wish, signal.Signals(number).name
        # A list: appending is atomic, and a handler may not take a lock that the interrupted code holds.
        wish.append(StopReason(f"{name} received", "interrupted"))
        if number == signal.SIGINT:
            # From now on Ctrl-C raises KeyboardInterrupt as usual.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if is_first and notice is not None:
            _print_now(f"\n{name}: {notice()}\n")

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: wish[0] if wish else None
    finally:
        for number, handler in before.items():
            _restore(number, handler)


@contextmanager
def interrupting_signals() -> Iterator[None]:
    """SIGTERM and SIGINT raise KeyboardInterrupt at once while the block runs, also within `stop_signals`.

    For preparations that take minutes and ask for no wish to stop: what they hold is cleaned up on the way out. Does
    nothing in a thread other than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in facilities.STOP_SIGNALS}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            _restore(number, handler)


def _restore(number: int, handler: Any) -> None:
    # None: not Python's, as in a program that embeds it. It cannot be put back, and passing None is an error.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, usual if handler is None else handler)


def _print_now(text: str) -> None:
    """To stderr itself: a handler may run in the middle of a write to its buffer, which must not be entered twice."""
    with suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))
