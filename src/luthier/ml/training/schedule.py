"""The learning rate of each step: linear warm-up, then cosine, linear or constant."""

from __future__ import annotations

import math

from luthier.core.recipe import ScheduleName


def learning_rate_factor(step: int, *, num_steps: int, num_warmup_steps: int, schedule: ScheduleName) -> float:
    """Factor on the peak learning rate at optimizer step `step` (counted from 0); in 0..1.

    Warm-up rises from 1/n at step 0 to 1 at step n-1, so that no step is spent at a rate of zero. After it, cosine is
    half a period (Loshchilov & Hutter, 2017, arXiv:1608.03983, without restarts) and linear a straight line; both would
    reach zero at step `num_steps`, one after the last.
    """
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1.0 - progress
    return 1.0
