"""An in-memory cache for records that never change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class LRUCache(Generic[T]):
    """A least-recently-used cache, bounded by the total weight of its values. Thread-safe.

    A single value heavier than the bound stays until the next one is stored, so that reading on in it stays fast.
    """

    def __init__(self, most: int) -> None:
        self._most, self._weight, self._lock = most, 0, threading.Lock()
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def find(self, key: str) -> T | None:
        """The value, or None if it is not in the cache."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def keep(self, key: str, value: T, weight: int = 1) -> T:
        """Store a value and return it."""
        with self._lock:
            if key in self._values:
                self._weight -= self._values.pop(key)[1]
            self._values[key] = (value, weight)
            self._weight += weight
            # The newest value is last and always stays, however heavy it is.
            while self._weight > self._most and len(self._values) > 1:
                self._weight -= self._values.popitem(last=False)[1][1]
        return value
