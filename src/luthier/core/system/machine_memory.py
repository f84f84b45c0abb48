"""Memory of this machine, or of the container that this process runs in, and what a library raises without it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

from luthier.core.errors import MemoryShortError, first_line
from luthier.core.system.control_groups import control_groups

_Names = tuple[str, str, str]
# Files of the limit and of what is used, and the entry of memory.stat for idle files, sub-groups included.
_SECOND: Final[_Names] = ("memory.max", "memory.current", "inactive_file")
_FIRST: Final[_Names] = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory_bytes() -> tuple[int, int]:
    """Total and available memory; limits of this process's control groups (cgroup v2 or v1) count where they are lower.

    Such as those of a container, of a job of a cluster, or of a service of systemd.
    """
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    for folder, is_first in control_groups("memory"):
        names = _FIRST if is_first else _SECOND
        limit = _number(folder / names[0])
        used = _number(folder / names[1])
        if limit is not None and used is not None:
            total = min(total, limit)
            available = min(available, max(0, limit - max(0, used - _idle_file_bytes(folder, names[2]))))
    return total, available


def _number(file: Path) -> int | None:
    """The number in a file; None where there is no such file, or no limit (`max`)."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _idle_file_bytes(folder: Path, name: str) -> int:
    """Of the files that the kernel keeps in a group's memory, what it gives up first where memory is short."""
    # Kubernetes leaves them out as well ("working set"). Otherwise a container that has read a large file looks full.
    statistics = folder / "memory.stat"
    lines = statistics.read_text(encoding="ascii").splitlines() if statistics.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


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
