"""Retry while a database restarts, so that a short outage does not lose computed results."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from luthier.core.errors import UnreachableError

Found = TypeVar("Found")
MAX_SECONDS: Final = 120.0
_LONGEST_WAIT_SECONDS: Final = 2.0


def retry_unreachable(do: Callable[[], Found], max_seconds: float = MAX_SECONDS) -> Found:
    """Call `do` again until the database answers, with exponential backoff of at most two seconds.

    Args:
        do: What to call. It must be idempotent: a call that failed may have taken effect.
        max_seconds: How long to retry, in seconds.

    Raises:
        UnreachableError: The database did not answer within `max_seconds`.
    """
    deadline, wait = time.monotonic() + max_seconds, 0.1
    while True:
        try:
            return do()
        except UnreachableError:
            # Raise now rather than sleep past the deadline.
            if time.monotonic() + wait >= deadline:
                raise
        time.sleep(wait)
        wait = min(_LONGEST_WAIT_SECONDS, 2 * wait)
