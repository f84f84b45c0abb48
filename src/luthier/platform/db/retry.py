"""Wait for a database that restarts: what was computed meanwhile must not be lost to a few seconds of silence."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from luthier.core.errors import UnreachableError

Found = TypeVar("Found")
MAX_SECONDS: Final = 120.0
_LONGEST_WAIT_SECONDS: Final = 2.0


def retry_unreachable(do: Callable[[], Found], max_seconds: float = MAX_SECONDS) -> Found:
    """Do something again until the database answers; it must be such that doing it twice changes nothing.

    Raises UnreachableError where it has not answered for `max_seconds`.
    """
    deadline, wait = time.monotonic() + max_seconds, 0.1
    while True:
        try:
            return do()
        except UnreachableError:
            if time.monotonic() + wait >= deadline:
                raise
        time.sleep(wait)
        wait = min(_LONGEST_WAIT_SECONDS, 2 * wait)
