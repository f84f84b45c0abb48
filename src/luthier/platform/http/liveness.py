"""Whether this process can still answer: its event loop, the threads that answer requests, and those that hash.

Most routes need one of the event loop's threads for requests (40 by anyio's default). A process whose threads all wait
for ever still accepts connections, and answers what needs none. So a thread is requested to do nothing: how long that
takes tells a process that is busy from one that is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from anyio.to_thread import current_default_thread_limiter, run_sync

from luthier.platform.home.context import Context

Found = TypeVar("Found")
THREAD_SECONDS: Final = 5.0
"""How long a thread may take to come free before the process counts as unhealthy."""
HASH_SECONDS: Final = 120.0
"""The same for what hashes a password, and begins a session in a database that may be locked for a while."""


class InThread(Generic[Found]):
    """Something done in one of the threads for requests, at most once at a time: all who ask meanwhile share it.

    So nobody takes more than one thread by asking often.
    """

    def __init__(self, do: Callable[[], Found], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._do, self._clock = do, clock
        self._task: asyncio.Task[Found] | None = None
        self._began = 0.0

    async def found(self, within_seconds: float) -> Found:
        """What it returns or raises.

        Args:
            within_seconds: How long it may have been under way.

        Raises:
            TimeoutError: It has been under way for longer than that.
        """
        task = self._task
        # A task of a loop that has ended, as in tests, would never finish.
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = self._task = asyncio.create_task(run_sync(self._do))
            self._began = self._clock()
        # asyncio.wait does not cancel on time-out, as wait_for would: the others who share the task go on waiting.
        await asyncio.wait({task}, timeout=max(0.0, within_seconds - self.seconds))
        if not task.done():
            raise TimeoutError
        return task.result()

    @property
    def seconds(self) -> float:
        """How long ago it began."""
        return self._clock() - self._began


class Liveness:
    """Looks whether the process can still answer."""

    def __init__(self, context: Context, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._context, self._thread = context, InThread(_nothing, clock=clock)

    async def problems(self) -> dict[str, str]:
        """What is gone, each with why; nothing where all is well. Takes at most `THREAD_SECONDS`."""
        found: dict[str, str] = {}
        try:
            await self._thread.found(THREAD_SECONDS)
        except TimeoutError:
            limiter = current_default_thread_limiter()
            found["threads"] = (
                f"no thread has come free for {self._thread.seconds:.0f} s: {limiter.borrowed_tokens} of "
                f"{limiter.total_tokens:g} are busy"
            )
        seconds = self._context.password_threads.longest_seconds()
        if seconds >= HASH_SECONDS:
            found["passwords"] = f"a sign-in has not ended for {seconds:.0f} s"
        return found


def _nothing() -> None:
    pass
