"""AdamW with moments in eight bits: a quarter of their memory.

Dettmers et al., 2022, "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861. As there (section 2.3 and
appendix), embeddings and parameters of fewer than 4,096 numbers keep moments of 32 bits. Masters and summed gradients
stay in fp32, as with every optimizer here.

One thing is done otherwise: the square root of the second moment is packed, not the moment itself. Squaring doubles the
range in powers of ten, so that in a block with one large gradient the second moments of small ones round to zero while
their first moments do not, and the quotient flies off (the "zero-point problem", Li et al., 2023, arXiv:2309.01507,
section 4.2). The root spans the same range as the gradients, and the table of levels covers it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor

from luthier.core.plan import OptimizerPlan
from luthier.ml.training.optimizers import blockwise
from luthier.ml.training.optimizers.adamw import AdamW
from luthier.ml.training.optimizers.blockwise import BLOCK, Packed
from luthier.ml.training.optimizers.protocol import Trained

MIN_PACKED: Final = 4096
# Unpacked numbers of one piece stay in the processor's cache, and add nothing to the peak of memory.
_PIECE: Final = 256 * BLOCK


class AdamW8bit:
    """AdamW, its moments unpacked piece by piece while a step is made."""

    is_paged: ClassVar[bool] = False

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:
        self.plan = plan
        self.packed = tuple(x for x in trained if x.place != "embedding" and x.master.numel() >= MIN_PACKED)
        self.plain = AdamW([x for x in trained if x not in self.packed], plan)
        self.moments: dict[str, tuple[Packed, Packed]] = {}
        self.num_steps = 0
        for one in self.packed:
            self.moments[one.name] = (self._room(one, is_signed=True), self._room(one, is_signed=False))

    def _room(self, one: Trained, *, is_signed: bool) -> Packed:
        device = torch.device("cpu") if self.is_paged else one.master.device
        pins = self.is_paged and one.master.is_cuda
        return blockwise.zeros(one.master.numel(), device, is_signed=is_signed, pins=pins)

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """One step."""
        self.plain.update(rate)
        self.num_steps += 1
        for one in self.packed:
            weights, gradient = one.master.detach().view(-1), one.master.grad
            assert gradient is not None
            first, second = self.moments[one.name]
            for start in range(0, weights.numel(), _PIECE):
                blocks = slice(start // BLOCK, (start + _PIECE) // BLOCK)
                here = slice(start, start + _PIECE)
                self._move(
                    weights[here],
                    gradient.view(-1)[here],
                    Packed(*(x[blocks] for x in first)),
                    Packed(*(x[blocks] for x in second)),
                    rate * one.rate_factor,
                    one.decay,
                )

    def _move(
        self, weights: Tensor, gradient: Tensor, first: Packed, second: Packed, rate: float, decay: float
    ) -> None:
        """Algorithm 2 of arXiv:1711.05101 on one piece."""
        beta1, beta2, count = self.plan.beta1, self.plan.beta2, weights.numel()
        mean = _here(first, weights, is_signed=True)[:count].lerp_(gradient, 1 - beta1)
        # The root was packed, so it is squared before it is averaged.
        square = _here(second, weights, is_signed=False)[:count].square_()
        root = square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2).sqrt_()
        # Packed now: `root` is scaled in place below.
        blockwise.pack(mean, first, is_signed=True)
        blockwise.pack(root, second, is_signed=False)
        # Bias correction of the second moment: sqrt(v / (1 - b2^t)) is root * (1 - b2^t)^-1/2.
        root.mul_((1 - beta2**self.num_steps) ** -0.5).add_(self.plan.epsilon)
        weights.mul_(1 - rate * decay).addcdiv_(mean, root, value=-rate / (1 - beta1**self.num_steps))

    def state(self) -> dict[str, Tensor]:
        """Codes and scales of both moments; those of 32 bits by AdamW's names."""
        state = self.plain.state()
        if self.num_steps:
            for name, (first, second) in self.moments.items():
                state |= {f"first.{name}": first.codes, f"first_scale.{name}": first.largest}
                state |= {f"second_root.{name}": second.codes, f"second_root_scale.{name}": second.largest}
        return state

    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:
        """The very codes and scales."""
        self.plain.load(state, num_steps_taken)
        self.num_steps = num_steps_taken
        for name, moments in self.moments.items():
            for part, packed in zip(("first", "second_root"), moments, strict=True):
                packed.codes.copy_(state[f"{part}.{name}"])
                packed.largest.copy_(state[f"{part}_scale.{name}"])


class PagedAdamW8bit(AdamW8bit):
    """The same steps, with the packed moments in the host's memory: each piece goes to the accelerator and back.

    QLoRA's paged optimizer (Dettmers et al., 2023, arXiv:2305.14314, section 3) leaves it to the driver which pages
    move, and when; here all of them move, once a step, so that no page fault decides how long a step takes.
    """

    is_paged = True


def _here(packed: Packed, like: Tensor, *, is_signed: bool) -> Tensor:
    """The numbers on the device of `like`, in its precision."""
    moved = Packed(*(x.to(like.device, non_blocking=True) for x in packed))
    return blockwise.unpack(moved, is_signed=is_signed, dtype=like.dtype)
