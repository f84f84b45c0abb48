"""Schedule-free AdamW: a constant learning rate and an average of all steps in place of a schedule that falls.

There are three sequences of weights. Gradients are taken at y, steps are made on z, and x, a weighted mean of all z, is
what is validated and saved:

    y = (1 - beta1) z + beta1 x
    z <- z - rate (g / (root of the second moment + epsilon) + decay y)
    x <- (1 - c) x + c z,    c = w / (sum of w so far),    w = (largest rate so far)^2

So steps of the warm-up, with small rates, count little. The masters are y; z and the second moment are kept, and x is
(y - (1 - beta1) z) / beta1: with as much memory as AdamW, and beta1 above 0.

As in the authors' code and optax, and unlike in the paper's algorithm 1, the second moment is divided by 1 - beta2^t
instead of the rate being multiplied by the root of it: the rate is then the recipe's from the first step on, for the
decay and in w, too. And w has the largest rate so far, which matters only with a schedule that falls.

Source: Defazio et al., 2024, "The Road Less Scheduled", arXiv:2405.15682, algorithm 1 and section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.plan import OptimizerPlan
from luthier.ml.training.optimizers.protocol import Trained, late_start, updates_in


@dataclass(slots=True)
class _Sequences:
    """The sequences of one parameter besides its master, and its place in them.

    Attributes:
        steps: z.
        second: second moment of the gradient.
        num_updates: of this parameter.
        largest_rate: of all its updates.
        sum_of_weights: in the average, of all its updates.
    """

    steps: Tensor
    second: Tensor
    num_updates: int = 0
    largest_rate: float = 0.0
    sum_of_weights: float = 0.0


class ScheduleFreeAdamW:
    """z and the second moment of each parameter, in the precision of the masters, which are y."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:
        self.trained, self.plan = tuple(trained), plan
        self.sequences: dict[str, _Sequences] = {}
        self.num_steps = 0

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """One step."""
        self.num_steps += 1
        for one in self.trained:
            if one.master.grad is not None:
                self._move(one, one.master.grad, rate * one.rate_factor)

    def _move(self, one: Trained, gradient: Tensor, rate: float) -> None:
        y, (beta1, beta2) = one.master, (self.plan.beta1, self.plan.beta2)
        own = self.sequences.get(one.name)
        if own is None:  # all three sequences begin at the same weights
            own = self.sequences[one.name] = _Sequences(y.detach().clone(), torch.zeros_like(y))
        own.num_updates += 1
        own.largest_rate = max(rate, own.largest_rate)
        weight = own.largest_rate**2
        own.sum_of_weights += weight
        share = weight / own.sum_of_weights if weight else 0.0
        own.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # g / (sqrt(v / correction) + epsilon), with the correction taken out of the root: one pass less.
        root = (1 - beta2**own.num_updates) ** 0.5
        direction = own.second.sqrt().add_(self.plan.epsilon * root)
        torch.div(gradient, direction, out=direction)
        if one.decay:
            direction.add_(y, alpha=one.decay / root)
        # y = (1 - beta1) z + beta1 x after both have moved, without x: towards the old z by `share`, and what is left
        # of the step on z.
        y.lerp_(own.steps, share).add_(direction, alpha=-rate * root * (1 - beta1 * (1 - share)))
        own.steps.add_(direction, alpha=-rate * root)

    def averages(self) -> Iterator[tuple[str, Tensor]]:
        """Name and x of each parameter that has been updated, one after the other; a new tensor each."""
        for one in self.trained:
            if (own := self.sequences.get(one.name)) is not None:
                # x = z + (y - z) / beta1
                yield one.name, torch.lerp(own.steps, one.master.detach(), 1 / self.plan.beta1)

    def state(self) -> dict[str, Tensor]:
        """`steps.` (z), `second.` moment and `averaging.` (largest rate, sum of weights) of each parameter."""
        state: dict[str, Tensor] = {}
        for name, own in self.sequences.items():
            state |= {f"steps.{name}": own.steps, f"second.{name}": own.second}
            # In 64 bits, as they are computed: a resumed run continues to the bit.
            state[f"averaging.{name}"] = torch.tensor([own.largest_rate, own.sum_of_weights], dtype=torch.float64)
            state |= late_start(name, own.num_updates, self.num_steps)
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:
        """The same."""
        self.num_steps, self.sequences = num_steps_taken, {}
        for one in self.trained:
            if f"steps.{one.name}" not in state:
                continue
            steps, second = (
                state[f"{part}.{one.name}"].to(one.master.device, copy=True) for part in ("steps", "second")
            )
            largest_rate, sum_of_weights = state[f"averaging.{one.name}"].tolist()
            count = updates_in(state, one.name, num_steps_taken)
            self.sequences[one.name] = _Sequences(steps, second, count, largest_rate, sum_of_weights)
