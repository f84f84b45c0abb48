"""Pauses before a model is loaded again that has ended the engine process while it was being loaded.

Such an end takes the answers of all other models with it. The first one may have other causes. From the second one in a
row on, requests for the model are refused for a while, which doubles, and those for other models are answered.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from luthier.core.errors import WorkError
from luthier.core.stream import LoadedModel, Served

_FIRST_PAUSE_SECONDS: Final = 5.0
_MAX_PAUSE_SECONDS: Final = 300.0
_MOST_DOUBLINGS: Final = 20
_MAX_MODELS: Final = 256


@dataclass(frozen=True, slots=True)
class _Crashes:
    """What is known of one model.

    Attributes:
        num: Ends of the process while it was being loaded, since it was loaded last.
        retry_at: When it may be loaded again.
    """

    num: int = 0
    retry_at: float = 0.0


class CrashPauses:
    """The models whose loading has ended the engine process. Thread-safe. clock: seconds, monotonic."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[Served, _Crashes] = {}  # the oldest first

    def check(self, model: Served) -> None:
        """Check that a model may be loaded now.

        Raises:
            WorkError: It has ended the process several times, a moment ago.
        """
        with self._lock:
            known = self._known.get(model, _Crashes())
            seconds = math.ceil(known.retry_at - self._clock())
        if seconds > 0:
            raise WorkError(
                f"the process that answers has ended {known.num} times in a row while it loaded {model.path}",
                expected="a model whose files are whole, and enough memory for it",
                do=f"ask again in {seconds} s; if it ends again, see the log of the server, or ask a smaller model",
            )

    def note_end(self, loading: Collection[Served]) -> None:
        """The process has ended by itself while it was loading these models."""
        with self._lock:
            for model in dict.fromkeys(loading):
                num = self._known.pop(model, _Crashes()).num + 1
                pause = _FIRST_PAUSE_SECONDS * 2 ** min(num - 2, _MOST_DOUBLINGS) if num > 1 else 0.0
                self._known[model] = _Crashes(num, self._clock() + min(pause, _MAX_PAUSE_SECONDS))
            while len(self._known) > _MAX_MODELS:
                del self._known[next(iter(self._known))]

    def note_loaded(self, loaded: Collection[LoadedModel]) -> None:
        """These models are in memory: earlier ends count no longer."""
        with self._lock:
            kept = {model: it for model, it in self._known.items() if not any(one.answers(model) for one in loaded)}
            self._known = kept
