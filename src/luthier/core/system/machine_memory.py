"""Memory of this machine, or of the container that this process runs in, and what a library raises without it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

from luthier.core.errors import MemoryShortError, first_line

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED: Final = Path("/sys/fs/cgroup/memory.current")
_CGROUP_STATISTICS: Final = Path("/sys/fs/cgroup/memory.stat")


def memory_bytes() -> tuple[int, int]:
    """Total and available memory; a container's own limit (cgroup v2) counts where it is lower."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    if _CGROUP_LIMIT.is_file() and _CGROUP_USED.is_file():
        text = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
        if text.isdigit():
            total = min(total, int(text))
            used = max(0, int(_CGROUP_USED.read_text(encoding="ascii")) - _idle_file_bytes())
            available = min(available, max(0, int(text) - used))
    return total, available


def _idle_file_bytes() -> int:
    """Of the files that the kernel keeps in the container's memory, what it gives up first where memory is short."""
    # Kubernetes leaves them out as well ("working set"). Otherwise a container that has read a large file looks full.
    lines = _CGROUP_STATISTICS.read_text(encoding="ascii").splitlines() if _CGROUP_STATISTICS.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that no more memory was given, itself or by what caused it."""
    cause: BaseException | None = error
    while cause is not None:
        # By name and words: torch is not imported here, and on a CPU it raises a plain RuntimeError.
        if isinstance(cause, MemoryError | MemoryShortError) or type(cause).__name__ == "OutOfMemoryError":
            return True
        if isinstance(cause, RuntimeError) and "can't allocate memory" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def memory_short(error: BaseException, *, what: str, do: str) -> MemoryShortError:
    """The error of a library that got no memory as one of ours.

    Args:
        error: as the library raised it.
        what: that ran out of memory, as the start of a sentence.
        do: the next thing to try.
    """
    total, available = memory_bytes()
    free = f"{available / 1e9:.1f} of {total / 1e9:.1f} GB of the machine are free now"
    said = first_line(error)
    return MemoryShortError(f"{what}: {said} ({free})", expected="more free memory", do=do)
