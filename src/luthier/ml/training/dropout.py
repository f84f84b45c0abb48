"""Dropout whose mask is drawn again from a key in the backward pass, instead of being kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_DROPOUT_STEPS = 1 << 15
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout(NamedTuple):
    """One draw of dropout, named by a key: the same key gives the same mask again, so no mask is ever kept.

    Half the time and none of the memory of torch's own dropout on a CPU (docs/log.md).
    """

    probability: float
    key: int

    @property
    def keep_probability(self) -> float:
        """The exact share of inputs kept: the probability is rounded to a multiple of 1/32768."""
        return self._keep_steps / _DROPOUT_STEPS

    @property
    def _keep_steps(self) -> int:
        return _DROPOUT_STEPS - round(self.probability * _DROPOUT_STEPS)

    def mask(self, like: Tensor) -> Tensor | None:
        """All ones where an input is kept, all zeros where not: integers as wide as the elements of `like`.

        Fifteen random bits an element. None where the probability is too small to drop anything.
        """
        if self._keep_steps == _DROPOUT_STEPS:
            return None
        count = like.numel()
        # Each 64-bit word is read as four draws of 16 bits, of which 15 are used.
        mask = self._random_words((count + 3) // 4, like.device).view(torch.int16)[:count]
        # 0..32767 less the number kept is negative exactly where kept; shifting spreads the sign over all bits
        mask.bitwise_and_(_DROPOUT_STEPS - 1).sub_(self._keep_steps).bitwise_right_shift_(15)
        # Widening an integer repeats its sign bit: all ones stay all ones.
        return mask.view(like.shape).to(_INTEGERS[like.element_size()])

    def _random_words(self, count: int, device: torch.device) -> Tensor:
        if device.type == "cpu":  # NumPy's raw streams are stable over versions and twice as fast as torch's
            return torch.from_numpy(np.random.SFC64(self.key).random_raw(count).view(np.int64))
        generator = torch.Generator(device).manual_seed(self.key)
        return torch.empty(count, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with what the mask drops set to zero, and the rest as it is, not scaled up; laid over it bit by bit."""
    # A bitwise AND, not a product: 0 * inf and 0 * NaN would be NaN.
    return x if mask is None else (x.view(mask.dtype) & mask).view(x.dtype)
