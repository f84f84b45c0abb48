"""How far the work of a form is: what its services report as progress, kept for the page that waits for it.

services --> context.progress (ThreadProgress) --> WorkProgress of the thread's work --> stages --> /working/NAME
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Self

from luthier.core.ports import Progress, ProgressTask, SilentTask
from luthier.core.text.counted import plural_unit

_BYTES: Final = "bytes"


@dataclass(slots=True)
class Stage:
    """One step of the work, as its page shows it.

    Attributes:
        title: What is done, for people.
        total: How many units there are; None where it is not known.
        unit: What is counted; empty for nothing.
        done: How many units are done.
        since: When it began, in seconds of the monotonic clock.
    """

    title: str
    total: float | None
    unit: str
    done: float = 0
    since: float = field(default_factory=time.monotonic)

    @property
    def is_bytes(self) -> bool:
        """Whether sizes are counted."""
        return self.unit == _BYTES

    @property
    def heading(self) -> str:
        """The title as a sentence begins."""
        return self.title[:1].upper() + self.title[1:]

    @property
    def shown_total(self) -> float | None:
        """The total, or what is done where that is more: a total is an estimate at times."""
        return max(self.total, self.done) if self.total else None

    @property
    def words(self) -> str:
        """`Writing rows: 3 of 10 rows`, without the total where it is not known, and without a number of nothing."""
        if total := self.shown_total:
            return f"{self.heading}: {self.done:,.0f} of {total:,.0f} {_counted_unit(self.unit, total)}".rstrip()
        if self.done:
            return f"{self.heading}: {self.done:,.0f} {_counted_unit(self.unit, self.done)}".rstrip()
        return self.heading

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self.since


class WorkProgress:
    """The stages of one piece of work. Methods may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[_Task] = []

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        """A stage, shown while it is entered."""
        return _Task(self, Stage(title, total, unit, done))

    def stages(self) -> tuple[Stage, ...]:
        """The stages in progress, the outermost first."""
        with self._lock:
            return tuple(one.stage for one in self._open)

    def enter(self, task: _Task) -> None:
        """Show a stage below those in progress."""
        with self._lock:
            self._open.append(task)

    def leave(self, task: _Task) -> None:
        """Show a stage no longer."""
        with self._lock:
            # By identity: two stages may be equal.
            self._open = [one for one in self._open if one is not task]


class _Task(SilentTask):
    def __init__(self, progress: WorkProgress, stage: Stage) -> None:
        self._progress, self.stage = progress, stage

    def advance(self, amount: float = 1) -> None:
        """Count."""
        self.stage.done += amount

    def note(self, text: str) -> None:
        """Show nothing: notes are for those who run the server, and may name its files."""

    def __enter__(self) -> Self:
        self.stage.since = time.monotonic()
        self._progress.enter(self)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._progress.leave(self)


_current: Final[ContextVar[WorkProgress | None]] = ContextVar("work_progress", default=None)


class ThreadProgress:
    """A progress that reports to the work that the calling thread carries out.

    Args:
        other: Gets what is reported elsewhere.
    """

    def __init__(self, other: Progress) -> None:
        self._other = other

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        """A task of the thread's work, or of the other progress."""
        return (_current.get() or self._other).task(title, total, unit, done)


@contextmanager
def reporting_to(progress: WorkProgress) -> Iterator[None]:
    """In the block, what this thread reports to a `ThreadProgress` is shown as stages of this work."""
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)


def _counted_unit(unit: str, number: float) -> str:
    """The unit as it follows the number: progress names some units in the singular, others in the plural."""
    if number == 1:
        return unit.removesuffix("s")
    return plural_unit(unit) if unit else ""
