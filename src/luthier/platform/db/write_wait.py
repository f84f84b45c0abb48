"""How long a transaction that writes waits for its turn.

A process that hangs with the database open keeps all others out. The first ones wait the whole time, for it may be a
moment's work. Once somebody has waited so long in vain, those behind wait briefly, until one gets a turn: else each
request would keep a thread for the whole time, and those that only read would have none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

BRIEF_SECONDS: Final = 1.0


class WriteWait:
    """The turns of one process. Thread-safe.

    Args:
        is_busy: Whether an error says that another transaction writes.
        clock: Seconds on a clock that is never set.
    """

    def __init__(self, is_busy: Callable[[Exception], bool], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_busy, self._clock, self._lock = is_busy, clock, threading.Lock()
        self._since: float | None = None

    def seconds(self, usual: float, most: float | None = None) -> float:
        """How long to wait now, in seconds.

        Args:
            usual: The wait while nobody has waited in vain.
            most: An upper limit for this transaction; None for none.
        """
        with self._lock:
            found = usual if self._since is None else min(usual, BRIEF_SECONDS)
        return found if most is None else min(found, most)

    @contextmanager
    def turn(self, *, is_whole_wait: bool) -> Iterator[None]:
        """Wait for a turn in the block.

        Args:
            is_whole_wait: Whether a wait in vain means that nobody gets a turn, and not only that this one was short.
        """
        began = self._clock()
        try:
            yield
        except Exception as error:
            if is_whole_wait and self._is_busy(error):
                with self._lock:
                    # The earliest wait counts, so that the message says how long the database has really been locked.
                    self._since = began if self._since is None else self._since
            raise
        with self._lock:
            self._since = None

    def locked_seconds(self) -> float | None:
        """For how long nobody has got a turn; None where that is not known."""
        with self._lock:
            return None if self._since is None else self._clock() - self._since
