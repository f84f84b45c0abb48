"""The device of a run: deterministic computation, and peak memory of the process and its accelerator."""

from __future__ import annotations

import torch

from luthier.core.system.process_memory import forget_peak, peak_memory_bytes
from luthier.ml.inference import accelerator


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


def forget_peaks(device: str) -> None:
    """Reset the peaks of the process's memory and of an accelerator's."""
    forget_peak()
    if accelerator.is_accelerator(device):
        accelerator.forget_peak(device)


def device_peak_memory_bytes(device: str) -> int:
    """Peak memory that torch reserved on a device since `forget_peaks`; for a CPU, that of the process."""
    return accelerator.peak_bytes(device) if accelerator.is_accelerator(device) else peak_memory_bytes()
