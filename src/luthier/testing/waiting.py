"""Waiting in tests for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

_LOOK_SECONDS = 0.05


def wait_for(seen: Callable[[], bool], seconds: float = 120.0) -> None:
    """Return as soon as it is seen; raises TimeoutError where it is not within `seconds`."""
    end = time.monotonic() + seconds
    while not seen():
        if time.monotonic() > end:
            raise TimeoutError(f"not seen within {seconds:.0f} s")
        time.sleep(_LOOK_SECONDS)
