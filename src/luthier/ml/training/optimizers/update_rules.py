"""Update rules: AdamW with moments in 32 or 8 bits, Adafactor, Lion and Muon.

AdamW in eight bits packs moments in blocks of 256, each scaled by its largest (dynamic tree quantisation: a level is
10^-e for e in 0..6 times one of the midpoints of equal steps from 0.1 to 1, twice as many for each power of ten;
plus 0 and 1; without negative numbers the sign bit doubles the levels). Embeddings and parameters with fewer than 4,096
elements keep 32-bit moments. Unlike in the paper, the square root of the second moment is packed: squaring doubles the
range in powers of ten, so that in a block with one large gradient the second moments of small ones would round to zero
while their first moments do not.

Adafactor: the second moment of a matrix as one number per row and one per column, updates with clipped root mean
square, and a second moment with decay 1 - t^-0.8. The step is the recipe's learning rate, not one relative to the
weight (section 8): a LoRA matrix that starts at zero has no size. So transformers' implementation is used, not torch's.

Lion: the step is sign(beta1 m + (1 - beta1) g), and the momentum then moves by beta2, with decoupled weight decay.

Muon: Nesterov momentum of a matrix with all singular values brought near one by five Newton-Schulz iterations in
bf16. Embeddings, an untied head, vectors and stacks of matrices (experts) are AdamW's. The update is scaled by 0.2
sqrt(larger side), the size of AdamW's in long training. AdamW's first updates are five times as large, and fine-tuning
ends among them: so by default AdamW has a fifth of the rate (`adamw_rate_factor`), which is its own default. With a
factor of 1 one rate serves both, as in pre-training (Liu et al.).

Sources: Loshchilov & Hutter, 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101, algorithm 2. Dettmers
et al., 2022, "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861, section 2 and figure 2. Li et al.,
2023, arXiv:2309.01507, section 4.2 (the zero-point problem). Shazeer & Stern, 2018, "Adafactor: Adaptive Learning
Rates with Sublinear Memory Cost", arXiv:1804.04235, algorithm 4, sections 6 and 7.2. Chen et al., 2023, "Symbolic
Discovery of Optimization Algorithms", arXiv:2302.06675, algorithm 2 (Lion). Jordan et al., 2024, "Muon: An optimizer
for hidden layers in neural networks" (kellerjordan.github.io/posts/muon). Liu et al., 2025, "Muon is Scalable for LLM
Training", arXiv:2502.16982, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from luthier.core.plan import OptimizerPlan
from luthier.ml.inference.accelerator import can_pin
from luthier.ml.training.optimizers.protocol import Trained, in_groups, late_start, updates_in


class AdamW:
    """torch's fused AdamW; two moments per parameter, in the precision of the masters."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:
        self.trained = tuple(trained)
        self.adam = (
            torch.optim.AdamW(in_groups(trained), betas=(plan.beta1, plan.beta2), eps=plan.epsilon, fused=True)
            if trained
            else None
        )
        self.num_steps = 0

    def adjust(self, beta1: float, beta2: float, epsilon: float, weight_decay: float) -> None:
        """Use other settings from the next step on; moments stay, and the weight decay acts on all parameters.

        Args:
            beta1: decay of the first moment, in [0, 1).
            beta2: decay of the second moment, in [0, 1).
            epsilon: added to the root of the second moment.
            weight_decay: share of a weight that a step takes away, times the learning rate.
        """
        for group in self.adam.param_groups if self.adam is not None else ():
            group.update(betas=(beta1, beta2), eps=epsilon, weight_decay=weight_decay)

    def update(self, rate: float) -> None:
        """One step."""
        self.num_steps += 1
        if self.adam is None:
            return
        for group in self.adam.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.adam.step()

    def state(self) -> dict[str, Tensor]:
        """`first.` and `second.` moment of each parameter."""
        state: dict[str, Tensor] = {}
        for one in self.trained:
            if self.adam is not None and (moments := self.adam.state.get(one.master)):
                state[f"first.{one.name}"], state[f"second.{one.name}"] = moments["exp_avg"], moments["exp_avg_sq"]
                state |= late_start(one.name, int(moments["step"]), self.num_steps)
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:
        """Both moments, and the count that corrects their bias."""
        self.num_steps = num_steps_taken
        for one in self.trained:
            assert self.adam is not None
            if f"first.{one.name}" not in state:
                continue
            count = float(updates_in(state, one.name, num_steps_taken))
            self.adam.state[one.master] = {
                # on the device of the weights: the fused update requires it
                "step": torch.tensor(count, device=one.master.device),
                "exp_avg": state[f"first.{one.name}"].to(one.master.device, copy=True),
                "exp_avg_sq": state[f"second.{one.name}"].to(one.master.device, copy=True),
            }


BLOCK: Final = 256
_NUM_POWERS: Final = 7
# The level is looked up by a float's sign, exponent and first nine fraction bits: this is 20 times as fast as searching
# the levels, and deviates from the nearest level by at most a thousandth of the number.
_DROPPED_BITS: Final = 14
_NAME_MASK: Final = (1 << (32 - _DROPPED_BITS)) - 1


class Packed(NamedTuple):
    """Numbers in blocks.

    Attributes:
        codes: uint8 [blocks, 256], the last block padded.
        largest: fp32 [blocks], the scale of each block.
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
    """The code of the nearest level, indexed by the first 18 bits of a float: uint8 [2^18]."""
    names = torch.arange(_NAME_MASK + 1, dtype=torch.int64)
    centres = ((names << _DROPPED_BITS) | (1 << (_DROPPED_BITS - 1))).to(torch.int32).view(torch.float32)
    # infinities and NaN do not occur: a step with a non-finite gradient is skipped
    centres = torch.nan_to_num(centres, nan=1.0, posinf=1.0, neginf=-1.0)
    # exact zero, and numbers far below the smallest bin centre, must stay zero
    table = levels(is_signed=is_signed)
    middles = (table[1:] + table[:-1]) / 2
    return torch.bucketize(centres, middles).to(torch.uint8)


def zeros(count: int, device: torch.device | str, *, is_signed: bool, pins: bool = False) -> Packed:
    """A packed tensor of `count` zeros.

    Args:
        count: of the numbers; rounded up to whole blocks.
        device: of the tensors.
        is_signed: whether the levels have a sign; second moments have none.
        pins: whether to allocate in page-locked host memory.
    """
    num_blocks = -(-count // BLOCK)
    zero = int(torch.searchsorted(levels(is_signed=is_signed), 0.0))
    return Packed(
        torch.full((num_blocks, BLOCK), zero, dtype=torch.uint8, device=device, pin_memory=pins),
        torch.zeros(num_blocks, device=device, pin_memory=pins),
    )


def unpack(packed: Packed, *, is_signed: bool, dtype: torch.dtype) -> Tensor:
    """The numbers [blocks * 256].

    Args:
        packed: codes [blocks, 256] uint8 and the largest magnitude of each block [blocks] float32.
        is_signed: whether the levels have a sign; second moments have none.
        dtype: of the numbers.
    """
    table = levels(is_signed=is_signed).to(packed.codes.device, dtype)
    found = table.index_select(0, packed.codes.flatten().int()).view(-1, BLOCK)  # [blocks, 256]
    return found.mul_(packed.largest[:, None]).flatten()


def pack(numbers: Tensor, into: Packed, *, is_signed: bool) -> None:
    """Write numbers [n] into blocks; n must not exceed their capacity."""
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


MIN_PACKED: Final = 4096
# Unpacked numbers of one piece stay in the processor's cache and do not raise peak memory.
_PIECE: Final = 256 * BLOCK


class AdamW8bit:
    """AdamW with packed moments, unpacked piece by piece during a step."""

    is_paged: ClassVar[bool] = False

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:
        self.plan = plan
        self.packed = tuple(x for x in trained if x.place != "embedding" and x.master.numel() >= MIN_PACKED)
        self.plain = AdamW([x for x in trained if x not in self.packed], plan)
        self.moments: dict[str, tuple[Packed, Packed]] = {}
        self.num_steps = 0
        self.num_updates: dict[str, int] = {}
        """Of each packed parameter that has had a gradient."""
        for one in self.packed:
            self.moments[one.name] = (self._room(one, is_signed=True), self._room(one, is_signed=False))

    def _room(self, one: Trained, *, is_signed: bool) -> Packed:
        device = torch.device("cpu") if self.is_paged else one.master.device
        pins = self.is_paged and can_pin(one.master.device)
        return zeros(one.master.numel(), device, is_signed=is_signed, pins=pins)

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """One step."""
        self.plain.update(rate)
        self.num_steps += 1
        for one in self.packed:
            weights, gradient = one.master.detach().view(-1), one.master.grad
            if gradient is None:
                continue
            count = self.num_updates[one.name] = self.num_updates.get(one.name, 0) + 1
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
                    count,
                )

    def _move(
        self, weights: Tensor, gradient: Tensor, first: Packed, second: Packed, rate: float, decay: float, count: int
    ) -> None:
        """Algorithm 2 of arXiv:1711.05101 on one piece, in the update number `count` of its parameter."""
        beta1, beta2, size = self.plan.beta1, self.plan.beta2, weights.numel()
        mean = _here(first, weights, is_signed=True)[:size].lerp_(gradient, 1 - beta1)
        # The root was packed, so it is squared before it is averaged.
        square = _here(second, weights, is_signed=False)[:size].square_()
        root = square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2).sqrt_()
        # Packed now: `root` is scaled in place below.
        pack(mean, first, is_signed=True)
        pack(root, second, is_signed=False)
        # Bias correction of the second moment: sqrt(v / (1 - b2^t)) is root * (1 - b2^t)^-1/2.
        root.mul_((1 - beta2**count) ** -0.5).add_(self.plan.epsilon)
        weights.mul_(1 - rate * decay).addcdiv_(mean, root, value=-rate / (1 - beta1**count))

    def state(self) -> dict[str, Tensor]:
        """Codes and scales of both moments; 32-bit moments by AdamW's names."""
        state = self.plain.state()
        for name, (first, second) in self.moments.items():
            if name in self.num_updates:
                state |= {f"first.{name}": first.codes, f"first_scale.{name}": first.largest}
                state |= {f"second_root.{name}": second.codes, f"second_root_scale.{name}": second.largest}
                state |= late_start(name, self.num_updates[name], self.num_steps)
        return state

    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:
        """Codes and scales, unchanged."""
        self.plain.load(state, num_steps_taken)
        self.num_steps = num_steps_taken
        for name, moments in self.moments.items():
            if f"first.{name}" not in state:
                continue
            self.num_updates[name] = updates_in(state, name, num_steps_taken)
            for part, packed in zip(("first", "second_root"), moments, strict=True):
                packed.codes.copy_(state[f"{part}.{name}"])
                packed.largest.copy_(state[f"{part}_scale.{name}"])


class PagedAdamW8bit(AdamW8bit):
    """The same steps, with the packed moments in the host's memory: each piece goes to the accelerator and back.

    QLoRA's paged optimizer (Dettmers et al., 2023, arXiv:2305.14314, section 3) lets the driver decide which pages move
    and when; here all of them move once per step, so that page faults do not affect the duration of a step.
    """

    is_paged = True


def _here(packed: Packed, like: Tensor, *, is_signed: bool) -> Tensor:
    """The numbers on the device of `like`, in its precision."""
    moved = Packed(*(x.to(like.device, non_blocking=True) for x in packed))
    return unpack(moved, is_signed=is_signed, dtype=like.dtype)


_PARTS = {"exp_avg_sq_row": "rows", "exp_avg_sq_col": "columns", "exp_avg_sq": "second"}


class Adafactor:
    """Transformers' Adafactor with an explicit learning rate."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:  # noqa: ARG002
        # Imported here: it loads dependencies of transformers' trainer that the other rules do not need.
        from transformers.optimization import Adafactor as HubAdafactor

        self.trained = tuple(trained)
        self.optimizer = HubAdafactor(in_groups(trained), lr=0.0, relative_step=False, scale_parameter=False)
        self.num_steps = 0

    def update(self, rate: float) -> None:
        """One step."""
        self.num_steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """`rows.` and `columns.` of matrices, `second.` of vectors."""
        found: dict[str, Tensor] = {}
        for one in self.trained:
            if held := self.optimizer.state.get(one.master):
                found |= {f"{part}.{one.name}": held[key] for key, part in _PARTS.items() if key in held}
                found |= late_start(one.name, held["step"], self.num_steps)
        return found

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:
        """The same; the root mean square of the weight, also part of its state, is recomputed before it is read."""
        self.num_steps = num_steps_taken
        for one in self.trained:
            found = {
                key: state[f"{part}.{one.name}"].to(one.master.device, copy=True)
                for key, part in _PARTS.items()
                if f"{part}.{one.name}" in state
            }
            if found:
                count = updates_in(state, one.name, num_steps_taken)
                self.optimizer.state[one.master] = {"step": count, "RMS": 0.0, **found}


class Lion:
    """One momentum per parameter, in the precision of the masters."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:
        self.trained, self.plan = tuple(trained), plan
        self.momenta: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """One step."""
        for one in self.trained:
            gradient, own_rate = one.master.grad, rate * one.rate_factor
            if gradient is None:
                continue
            momentum = self.momenta.setdefault(one.name, torch.zeros_like(one.master))
            direction = momentum.lerp(gradient, 1 - self.plan.beta1).sign_()
            one.master.mul_(1 - own_rate * one.decay).add_(direction, alpha=-own_rate)
            momentum.lerp_(gradient, 1 - self.plan.beta2)

    def state(self) -> dict[str, Tensor]:
        """`momentum.` of each parameter."""
        return {f"momentum.{name}": momentum for name, momentum in self.momenta.items()}

    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:  # noqa: ARG002 - no bias to correct
        """The same."""
        for one in self.trained:
            if f"momentum.{one.name}" in state:
                self.momenta[one.name] = state[f"momentum.{one.name}"].to(one.master.device, copy=True)


class Muon:
    """torch's Muon for matrices of the layers, AdamW for everything else."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:
        self.matrices = tuple(x for x in trained if x.place == "matrix" and x.master.dim() == 2)
        factor = 1.0 if plan.adamw_rate_factor is None else plan.adamw_rate_factor
        rest = [x for x in trained if x not in self.matrices]
        self.rest = AdamW([replace(x, rate_factor=factor * x.rate_factor) for x in rest], plan)
        self.muon = torch.optim.Muon(
            in_groups(self.matrices),
            momentum=plan.momentum or 0.0,
            ns_steps=plan.num_iterations or 0,
            adjust_lr_fn="match_rms_adamw",
        )

    def update(self, rate: float) -> None:
        """One step."""
        self.rest.update(rate)
        for group in self.muon.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.muon.step()

    def state(self) -> dict[str, Tensor]:
        """`momentum.` of matrices, AdamW's moments of the rest."""
        state = self.rest.state()
        for one in self.matrices:
            if held := self.muon.state.get(one.master):
                state[f"momentum.{one.name}"] = held["momentum_buffer"]
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:
        """The same; Muon counts no steps."""
        self.rest.load(state, num_steps_taken)
        for one in self.matrices:
            if f"momentum.{one.name}" in state:
                momentum = state[f"momentum.{one.name}"].to(one.master.device, copy=True)
                self.muon.state[one.master] = {"momentum_buffer": momentum}
