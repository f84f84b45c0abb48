"""Lion: each weight moves by the sign of an interpolated momentum, so that one moment a parameter is enough.

Chen et al., 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, algorithm 2: the step is
sign(beta1 m + (1 - beta1) g), and the momentum then moves by beta2, with decoupled weight decay. Every weight moves
by the whole learning rate, which is why that is smaller than AdamW's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from luthier.core.plan import OptimizerPlan
from luthier.ml.training.optimizers.protocol import Trained


class Lion:
    """One momentum a parameter, as wide as the masters."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:
        self.trained, self.plan = tuple(trained), plan
        self.momenta: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """One step."""
        for one in self.trained:
            gradient, own_rate = one.master.grad, rate * one.rate_factor
            assert gradient is not None
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
            self.momenta[one.name] = state[f"momentum.{one.name}"].to(one.master.device, copy=True)
