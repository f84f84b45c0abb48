"""Progress of an answer in a child process, shown by the progress of whoever asked.

child: EventProgress.task --> events {"begin": ...}, {"advance": ...}, {"end": ...} --> parent: ShownEvents --> its task
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, Self

from luthier.core.ports import Progress, ProgressTask, SilentTask

_SECONDS_BETWEEN: Final = 0.2
"""Between two reports of a task: rows are counted one by one, and there may be millions."""


class EventProgress:
    """Reports tasks as events.

    Args:
        emit: Sends an event to the parent.
    """

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        self._emit, self._numbers = emit, itertools.count()

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        """A task that the parent shows."""
        begin = {"title": title, "total": total, "unit": unit, "done": done}
        return _EventTask(self._emit, next(self._numbers), begin)


class _EventTask(SilentTask):
    def __init__(self, emit: Callable[[dict[str, Any]], None], number: int, begin: dict[str, Any]) -> None:
        self._emit, self._number, self._begin = emit, number, begin
        self._waiting, self._reported_at = 0.0, 0.0

    def advance(self, amount: float = 1) -> None:
        """Count, and report at most every few tenths of a second."""
        self._waiting += amount
        if (now := time.monotonic()) - self._reported_at >= _SECONDS_BETWEEN:
            self._emit({"advance": self._number, "amount": self._waiting})
            self._waiting, self._reported_at = 0.0, now

    def __enter__(self) -> Self:
        self._emit({"begin": self._number, **self._begin})
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._emit({"end": self._number})


class ShownEvents:
    """Shows the tasks of a child. Used in a `with` block, at whose end what the child has left open ends, too.

    Args:
        progress: What shows them.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[int, tuple[ProgressTask, ExitStack]] = {}

    def take(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if "begin" in event:
            stack = ExitStack()
            task = self._progress.task(event["title"], event["total"], event["unit"], event["done"])
            self._tasks[event["begin"]] = stack.enter_context(task), stack
        elif "advance" in event:
            self._tasks[event["advance"]][0].advance(event["amount"])
        elif "end" in event:
            self._tasks.pop(event["end"])[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        while self._tasks:
            self._tasks.popitem()[1][1].close()
