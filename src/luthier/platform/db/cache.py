"""What was read of things that never change, held in memory as long as there is room for it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class LRUCache(Generic[T]):
    """Values by key, of at most `most` weight together; the longest unused goes first. Safe to share between threads.

    A value that alone is heavier is held until the next one comes: whoever reads on in it does not wait for it again.
    """

    def __init__(self, most: int) -> None:
        self._most, self._weight, self._lock = most, 0, threading.Lock()
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def find(self, key: str) -> T | None:
        """The value, where it is still held."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def keep(self, key: str, value: T, weight: int = 1) -> T:
        """Hold a value; returns it."""
        with self._lock:
            if key in self._values:
                self._weight -= self._values.pop(key)[1]
            self._values[key] = (value, weight)
            self._weight += weight
            while self._weight > self._most and len(self._values) > 1:
                self._weight -= self._values.popitem(last=False)[1][1]
        return value
