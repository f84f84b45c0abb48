"""The device of a run: deterministic computation, and peak memory of the process and its accelerator."""

from __future__ import annotations

import torch

from luthier.core.system.process_memory import forget_peak, peak_memory_bytes


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
