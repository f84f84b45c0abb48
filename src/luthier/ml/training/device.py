"""The device of a run: deterministic computation, and peak memory of the process and its accelerator."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def compute_exactly(device: str) -> None:
    """Make torch use deterministic operations on an accelerator; on a CPU they are deterministic anyway.

    Otherwise the backward passes of attention, embeddings and indexing add up in the order in which threads arrive. An
    operation without a deterministic form still runs, and torch warns with its name: a resumed run then differs in the
    last digits. New memory is not filled first, as this mode would do by default: nothing here reads uninitialised
    memory.
    """
    if device == "cpu":
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


_CLEAR_PEAK = "5"


def forget_peak() -> bool:
    """Reset the peak, and say whether the system allowed it (Linux, `clear_refs`; see man 5 proc).

    If it did not, the peak counts from the start of the process: it may be too high, never too low.
    """
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def forget_peaks(device: str) -> None:
    """Reset the peaks of the process's memory and of an accelerator's."""
    forget_peak()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def device_peak_memory_bytes(device: str) -> int:
    """Peak memory that torch reserved on a device since `forget_peaks`; for a CPU, that of the process.

    Reserved memory counts, not only allocated memory: fragmentation makes a run need both.
    """
    return torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else peak_memory_bytes()


def resident_bytes() -> int:
    """Current resident memory of this process in bytes; 0 where the system does not report it."""
    return _from_status("VmRSS:") or 0


def _from_status(name: str) -> int | None:
    """A field of Linux's /proc/self/status, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def peak_memory_bytes() -> int:
    """Largest resident memory of this process since `forget_peak`, in bytes."""
    if (peak := _from_status("VmHWM:")) is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
