"""How the child of a worker tells how far it is, and how it ends in good order when it is told to."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from luthier.core.errors import LuthierError
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job

_TELL_SECONDS: Final = 2.0
_TERMINATED: Final = 128 + signal.SIGTERM


@contextmanager
def ending_when_told() -> Iterator[None]:
    """SIGTERM ends the block as an error does, so that nothing half-written stays."""

    def stop(_number: int, _frame: object) -> None:
        sys.exit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Told:
    """Progress that is told as events of the job: each task once, and now and then how far it is."""

    def __init__(self, context: Context, job: Job) -> None:
        self._context, self._job, self._number = context, job, 0

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> _Task:
        """A task that is told."""
        return _Task(self, title, total, unit, done)

    def tell(self, message: str) -> None:
        """Tell it; a database that stays away for a moment does not end the work."""
        self._number += 1
        with contextlib.suppress(LuthierError):
            code = f"progress-{self._job.attempt}-{self._number}"
            self._context.job_events.append(self._job.job_id, code, message)


class _Task:
    def __init__(self, told: Told, title: str, total: float | None, unit: str, done: float) -> None:
        self._told, self._title, self._total, self._unit, self._done = told, title, total, unit, done
        self._at = 0.0

    def advance(self, amount: float = 1) -> None:
        """Count, and tell now and then."""
        self._done += amount
        if self._total and time.monotonic() - self._at >= _TELL_SECONDS:
            self._at = time.monotonic()
            self._told.tell(f"{self._title}: {self._done:,.0f} of {self._total:,.0f} {self._unit}".rstrip())

    def note(self, text: str) -> None:
        """Say nothing: the title is enough."""

    def __enter__(self) -> Self:
        self._at = time.monotonic()
        self._told.tell(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
