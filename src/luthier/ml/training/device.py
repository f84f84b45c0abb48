"""The device of a run: deterministic computation, and peak memory of the process and its accelerator."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def compute_exactly(device: str) -> None:
    """Have torch take the deterministic form of every operation on an accelerator; on a CPU they are so as they are.

    The backward pass of attention, of embeddings and of picking rows otherwise adds up in the order in which threads
    come. An operation without such a form goes on, and torch warns of it by name: a resumed run then differs in last
    digits. Memory that is taken is not filled first, which this mode does by default and nothing here reads.
    """
    if device == "cpu":
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


_CLEAR_PEAK = "5"


def forget_peak() -> bool:
    """Reset the peak, and say whether the system allowed it (Linux, `clear_refs`; see man 5 proc).

    Where it does not, the peak counts from the start of the process: an over-statement, never an under-statement.
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
    """The most that torch held of a device's memory since `forget_peaks`; for a CPU, of the process's own.

    What is held counts, not only what is in use: a run needs both, cut up as memory becomes.
    """
    return torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else peak_memory_bytes()


def resident_bytes() -> int:
    """Resident memory of this process now; 0 where the system does not say."""
    return _from_status("VmRSS:") or 0


def _from_status(name: str) -> int | None:
    """A figure of Linux's /proc/self/status, in bytes."""
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
