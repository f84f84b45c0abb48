"""A process that works for moments gives way to those that work all the time, where the kernel has a way for it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

_GROUP: Final = Path("/proc/self/autogroup")
_NICE: Final = 10
"""A ninth of the usual weight: beside two threads of a training, a fifth of what one of them has on its processor."""


def lower_session_priority() -> None:
    """Lower the weight of this process's session, of which it must be the leader; nothing where that cannot be.

    Linux shares a processor out among sessions first (sched(7), "The autogroup feature"), and by that the one thread of
    a server counts as much as all threads of a training together, so that a training waits wherever a request comes.
    What this process starts in sessions of its own has the usual weight again, which `os.nice` could not give back.
    Where there are no autogroups, or a container's control group takes their place, threads count alike anyway.
    """
    if hasattr(os, "getsid") and os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            _GROUP.write_text(str(_NICE), encoding="ascii")
