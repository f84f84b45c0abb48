"""Tokens of answers that were given while the database did not answer: counted as soon as it does again.

A client that has an answer keeps it, and pays for it. No request is free meanwhile: each one is stored before it
is answered, and refused where that fails.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from luthier.core.errors import LuthierError, UnreachableError

log = logging.getLogger("luthier.service")

MAX_KEPT: Final = 10_000


class LateCharges:
    """What waits to be counted, oldest first, in the memory of this process. Safe to share between threads."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def count(self, charge: Callable[[], int | None]) -> int | None:
        """Count now, or, where the database does not answer, later; returns what `charge` does, None for later.

        Raises:
            UnreachableError: Too much waits already.
        """
        try:
            return charge()
        except UnreachableError as error:
            with self._lock:
                if len(self._waiting) >= MAX_KEPT:
                    raise
                self._waiting.append(charge)
            log.warning("the tokens of an answer are counted later, %d wait: %s", len(self._waiting), error.came)
            return None

    def settle(self) -> int:
        """Count what waits; returns how much that was.

        Raises:
            UnreachableError: The database does not answer.
        """
        num_done = 0
        while True:
            with self._lock:
                if not self._waiting:
                    return num_done
                # Taken out under the lock and run without it: `count` must not wait for the database.
                charge = self._waiting.popleft()
            try:
                charge()
            except UnreachableError:
                with self._lock:
                    # Back to the front: the order of charges decides which one exceeds a budget.
                    self._waiting.appendleft(charge)
                raise
            except LuthierError as error:  # such as a deleted key
                log.warning("the tokens of an answer cannot be counted: %s", error.came)
            num_done += 1

    def close(self) -> None:
        """Count what waits one last time; what cannot be counted is lost, and logged."""
        try:
            self.settle()
        except LuthierError as error:
            log.error("the tokens of %d answers were never counted: %s", len(self._waiting), error.came)
