"""How engines of one process share its cores while several of them write.

Each takes the cores that other processes leave free (`core/system/free_cores.py`), for which its own process does not
count. Two that write at the same time would have twice as many threads as cores, and the threads of a product wait for
each other: both would be slower than with half of the cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from luthier.core.ports import SharingEngine, StreamEngine

COMPUTING: Final = frozenset({"transformers"})
"""Engines that compute in the thread that asks them, with torch; they take turns, one step each."""


class CoreSharing:
    """Which engines write now, and the cores of each. Thread-safe.

    Args:
        num_threads: How many threads torch may have where no other engine writes.
        set_threads: Sets the threads of torch for the calling thread.
    """

    def __init__(
        self, num_threads: Callable[[], int] = lambda: 1, set_threads: Callable[[int], None] = lambda _: None
    ) -> None:
        self._num_threads, self._set_threads = num_threads, set_threads
        self._lock = threading.Lock()
        self._writing: dict[int, bool] = {}  # by engine: whether it computes with torch

    def before_step(self, name: str, engine: StreamEngine) -> None:
        """Called by the thread of an engine before each of its steps: gives it its share.

        Args:
            name: Of the engine.
            engine: That writes.
        """
        is_torch = name in COMPUTING
        is_shared = self._note(engine, is_torch=is_torch)
        threads = max(1, self._num_threads() // 2) if is_shared else self._num_threads()
        if is_torch:
            self._set_threads(threads)
        elif isinstance(engine, SharingEngine):
            engine.share(threads if is_shared else 0)

    def after_step(self, engine: StreamEngine) -> None:
        """Called after a step, and once an engine is closed: one without answers takes no cores."""
        if not engine.keys:
            self.leave(engine)

    def leave(self, engine: StreamEngine) -> None:
        """It writes nothing any more."""
        with self._lock:
            self._writing.pop(id(engine), None)
        if isinstance(engine, SharingEngine):
            engine.share(0)

    def _note(self, engine: StreamEngine, *, is_torch: bool) -> bool:
        """Note that it writes; returns whether one of the other kind does, too."""
        with self._lock:
            # Engines of torch take turns, so that all of them need the cores of one.
            if is_torch or isinstance(engine, SharingEngine):
                self._writing[id(engine)] = is_torch
            return any(kind != is_torch for kind in self._writing.values())
