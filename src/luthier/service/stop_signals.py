"""SIGTERM and SIGINT as a wish to stop, for work that ends in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[Callable[[], str | None]]:
    """Turns SIGTERM and SIGINT into a wish that the loop asks for after each step; a second SIGINT interrupts at once.

    In a thread other than the main one (a notebook's, a server's) signals are not ours to take.
    """
    wish: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _frame: object) -> None:
        wish.append(f"{signal.Signals(number).name} received")
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: wish[0] if wish else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
