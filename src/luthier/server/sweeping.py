"""What a server does beside answering: it clears away what has expired, and counts what it could not count before."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable
from typing import Final

from starlette.concurrency import run_in_threadpool

from luthier.core.errors import LuthierError
from luthier.core.system.clock_jump import JumpWatch, elapsed
from luthier.features.exports.folders import remove_abandoned
from luthier.features.runs.service import sweep_removed
from luthier.features.traffic.files import sweep as sweep_traffic
from luthier.platform.files.service import sweep_files
from luthier.platform.home.context import Context

SWEEP_SECONDS: Final = 60.0
WAIT_AFTER_JUMP_SECONDS: Final = 3600.0
"""Nothing is deleted by its age for so long after the clock was set forward: it may be set right again."""
_JUMP_SECONDS: Final = 60.0
log = logging.getLogger("luthier.api")


@contextlib.asynccontextmanager
async def swept(context: Context, every_seconds: float = SWEEP_SECONDS) -> AsyncIterator[None]:
    """Sweep now and then while the block runs; a sweep that is under way when it ends is waited for."""
    task = asyncio.create_task(_sweep(context, every_seconds))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _sweep(context: Context, every_seconds: float) -> None:
    steady = _SteadyClock()
    while True:
        await asyncio.sleep(every_seconds)
        try:
            # Charges first: what an answer has used is counted even while nothing may be deleted.
            await run_in_threadpool(context.late_charges.settle)
            if not steady.is_steady(await run_in_threadpool(context.access.now)):
                continue
        except (LuthierError, OSError) as error:
            log.warning("clearing away what has expired has to wait: %s", error)
            continue
        except Exception:
            # A bug ends one sweep, and not the sweeping for as long as the server runs.
            log.exception("clearing away what has expired has to wait: an error of our own")
            continue
        # Each on its own: one that fails must not keep the others from their work.
        for sweep in (sweep_files, sweep_traffic, sweep_removed, remove_abandoned):
            try:
                await run_in_threadpool(sweep, context)
            except (LuthierError, OSError) as error:  # the next one may find the store or the database again
                log.warning("clearing away what has expired failed: %s", error)
            except Exception:
                log.exception("clearing away what has expired failed: an error of our own")


class _SteadyClock:
    """Whether the clock can be trusted with what cannot be undone: not just after it was set forward."""

    def __init__(self, clock: Callable[[], float] = elapsed) -> None:
        self._clock, self._jumps, self._from = clock, JumpWatch(clock), -math.inf

    def is_steady(self, now: float) -> bool:
        """now: what the clock shows, seconds since 1970."""
        jumped = self._jumps.look(now)
        if jumped > _JUMP_SECONDS:
            # On the clock that nobody sets: setting the wall clock right again does not shorten the wait.
            self._from = self._clock() + WAIT_AFTER_JUMP_SECONDS
            log.warning(
                "the clock was set forward by %.0f s; expected: a clock that goes on evenly; what to do: set it right "
                "if it is wrong: until %.0f s have passed nothing is deleted by its age",
                jumped,
                WAIT_AFTER_JUMP_SECONDS,
            )
        return self._clock() >= self._from
