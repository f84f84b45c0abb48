"""Lower the CPU weight of a server process, so that it does not slow down a training on the same machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

_GROUP: Final = Path("/proc/self/autogroup")
_NICE: Final = 10
"""A ninth of the default weight: beside two training threads, a fifth of what one of them gets of its CPU."""


def lower_session_priority() -> None:
    """Lower the scheduling weight of this process's session. Does nothing unless the process is the session leader.

    Linux divides CPU time among sessions first (sched(7), "The autogroup feature"). The single thread of a server would
    therefore weigh as much as all threads of a training together, and each request would delay the training. Children
    that start sessions of their own get the default weight, which `os.nice` could not restore for them. Without
    autogroups, or in a container's control group, all threads have equal weight anyway.
    """
    # The weight belongs to the whole session: only its leader may lower it, not a program started from a shell.
    if hasattr(os, "getsid") and os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            _GROUP.write_text(str(_NICE), encoding="ascii")
