"""How what clients ask for again and again is read and written: at the least cost that there is.

FastAPI would check an answer again that was checked when it was made, and hand both the reading and the checking to
other threads: beside a training each such turn costs more than what is done in it.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from luthier.platform.home.context import Context


async def polled(context: Context, read: Callable[[], BaseModel], *, is_short: bool = True) -> Response:
    """The answer that `read` makes of one state of the database, as JSON.

    Args:
        context: The home.
        read: Reads the database and makes the answer.
        is_short: Whether it reads a few rows by an index. These are read on the event loop where the database is a
            file.
    """

    def answer() -> Response:
        with context.database.snapshot():
            return Response(read().model_dump_json(), media_type="application/json")

    if is_short and context.database.is_quick:
        return answer()
    return await run_in_threadpool(answer)
