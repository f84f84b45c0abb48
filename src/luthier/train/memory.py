"""The process's own memory: its peak, and an allocator that does not give back what the next step asks for again."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_CLEAR_PEAK = "5"


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks instead of returning them to the system; True where that worked.

    A training step frees and asks for the same megabytes over and over. By default each large block is mapped anew and
    zeroed by the kernel, a tenth of the step's time. Where the C library is another one, nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    limit = 2**31 - 1
    return bool(library.mallopt(_M_MMAP_THRESHOLD, limit)) and bool(library.mallopt(_M_TRIM_THRESHOLD, limit))


def forget_peak() -> None:
    """Start counting the peak anew, where the system allows it (Linux, `clear_refs`; see man 5 proc)."""
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK, encoding="ascii")
    except OSError:
        return  # the peak then counts from the start of the process: an over-statement, never an under-statement


def peak_memory_bytes() -> int:
    """Largest resident memory of this process since `forget_peak`, in bytes; on a GPU see torch's own counter."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
