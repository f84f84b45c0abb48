"""The same bits from the same numbers, so that a run that resumes on a GPU is the run that was never stopped."""

from __future__ import annotations

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
