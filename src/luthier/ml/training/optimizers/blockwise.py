"""Numbers in eight bits: in blocks of 256, each scaled by its largest, by a table that is fine near zero.

Dettmers et al., 2022, "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861, section 2.1 (blocks) and figure
2 (dynamic tree quantisation): a level is 10^-e for e in 0..6 times one of the midpoints of equal steps from 0.1 to 1,
twice as many for each power of ten; beside them 0 and 1. Without negative numbers the sign's bit doubles the levels.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

BLOCK: Final = 256
_NUM_POWERS: Final = 7
# A float's sign, exponent and first nine bits of its fraction name the level: looking it up there is 20 times as fast
# as searching the levels, and off from the nearest by at most a thousandth of the number.
_DROPPED_BITS: Final = 14
_NAME_MASK: Final = (1 << (32 - _DROPPED_BITS)) - 1


class Packed(NamedTuple):
    """Numbers in blocks.

    Attributes:
        codes: uint8 [blocks, 256], the last one filled up.
        largest: fp32 [blocks].
    """

    codes: Tensor
    largest: Tensor


@cache
def levels(*, is_signed: bool) -> Tensor:
    """The 256 values of the codes, sorted: fp32 from 0 (signed: about -1) to 1."""
    found = [0.0, 1.0]
    for power in range(_NUM_POWERS):
        count = 2 ** (_NUM_POWERS - 1 - power) * (1 if is_signed else 2)
        step = 0.9 / count
        positive = [10.0**-power * (0.1 + step * (i + 0.5)) for i in range(count)]
        found += positive + ([-x for x in positive] if is_signed else [])
    return torch.tensor(sorted(found), dtype=torch.float64).float()


@cache
def _code_of_name(*, is_signed: bool) -> Tensor:
    """For each first 18 bits of a float the code of the nearest level: uint8 [2^18]."""
    names = torch.arange(_NAME_MASK + 1, dtype=torch.int64)
    centres = ((names << _DROPPED_BITS) | (1 << (_DROPPED_BITS - 1))).to(torch.int32).view(torch.float32)
    # infinities and NaN never come: a step whose gradient is not finite is not made
    centres = torch.nan_to_num(centres, nan=1.0, posinf=1.0, neginf=-1.0)
    # exact zero, and what is too small for its centre to be near it, must stay zero
    table = levels(is_signed=is_signed)
    middles = (table[1:] + table[:-1]) / 2
    return torch.bucketize(centres, middles).to(torch.uint8)


def zeros(count: int, device: torch.device | str, *, is_signed: bool, pins: bool = False) -> Packed:
    """A packed tensor of `count` zeros.

    Args:
        pins: in page-locked host memory.
    """
    num_blocks = -(-count // BLOCK)
    zero = int(torch.searchsorted(levels(is_signed=is_signed), 0.0))
    return Packed(
        torch.full((num_blocks, BLOCK), zero, dtype=torch.uint8, device=device, pin_memory=pins),
        torch.zeros(num_blocks, device=device, pin_memory=pins),
    )


def unpack(packed: Packed, *, is_signed: bool, dtype: torch.dtype) -> Tensor:
    """The numbers [blocks * 256]."""
    table = levels(is_signed=is_signed).to(packed.codes.device, dtype)
    found = table.index_select(0, packed.codes.flatten().int()).view(-1, BLOCK)  # [blocks, 256]
    return found.mul_(packed.largest[:, None]).flatten()


def pack(numbers: Tensor, into: Packed, *, is_signed: bool) -> None:
    """Write numbers [n], n at most as many as fit, into blocks."""
    blocks = numbers.new_zeros(into.codes.numel(), dtype=torch.float32)
    blocks[: numbers.numel()] = numbers
    blocks = blocks.view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    # The smallest normal number in place of 0: in a block of zeros 0 / tiny stays 0.
    names = blocks.div_(largest.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).view(torch.int32)
    names = names.bitwise_right_shift_(_DROPPED_BITS).bitwise_and_(_NAME_MASK)
    table = _code_of_name(is_signed=is_signed).to(names.device)
    into.codes.copy_(table.index_select(0, names.flatten()).view(-1, BLOCK))
    into.largest.copy_(largest)
