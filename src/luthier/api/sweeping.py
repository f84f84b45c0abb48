"""What a server clears away beside answering: files that have expired, uploads that were given up, old traffic."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

from starlette.concurrency import run_in_threadpool

from luthier.core.errors import LuthierError
from luthier.service.context import Context
from luthier.service.export_folders import remove_abandoned
from luthier.service.files import sweep_files
from luthier.service.traffic_files import sweep as sweep_traffic

SWEEP_SECONDS: Final = 60.0
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
    while True:
        await asyncio.sleep(every_seconds)
        for sweep in (sweep_files, sweep_traffic, remove_abandoned):
            try:
                await run_in_threadpool(sweep, context)
            except (LuthierError, OSError) as error:  # the next one may find the store or the database again
                log.warning("clearing away what has expired failed: %s", error)
