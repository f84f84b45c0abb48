"""A process that the kernel ends where the one that started it ends, however that ends. Linux alone can."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # of <sys/prctl.h>


def dying_with_parent() -> Callable[[], None]:
    """What a child calls to be killed (SIGKILL) when the thread that started it ends; does nothing on other systems.

    The C library is opened here, so that nothing but the call itself is left to do between fork and exec.
    """
    if not sys.platform.startswith("linux"):
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, however it ends.

    Args:
        parent: the process id of the starter, which may have died before the kernel was asked.
    """
    if sys.platform.startswith("linux"):
        dying_with_parent()()
        # The parent died before prctl: this process belongs to init already, and no signal will come.
        if os.getppid() != parent:
            os._exit(1)
