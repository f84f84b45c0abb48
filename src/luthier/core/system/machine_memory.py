"""Memory of this machine, or of the container that this process runs in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED: Final = Path("/sys/fs/cgroup/memory.current")


def memory_bytes() -> tuple[int, int]:
    """Total and available memory; a container's own limit (cgroup v2) counts where it is lower."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    if _CGROUP_LIMIT.is_file() and _CGROUP_USED.is_file():
        text = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
        if text.isdigit():
            total = min(total, int(text))
            available = min(available, max(0, int(text) - int(_CGROUP_USED.read_text(encoding="ascii"))))
    return total, available
