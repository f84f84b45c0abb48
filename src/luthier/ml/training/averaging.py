"""An average of the weights over the steps: smoother than those of any one step, and what is validated and saved.

- `ema`: an exponential moving average, m = k m + (1 - k) w after each step (Polyak & Juditsky, 1992, "Acceleration of
  Stochastic Approximation by Averaging", in the form that networks are averaged with today). It begins as the weights
  after the first step, and k is held down to (1 + step) / (10 + step) at first, so that the start is soon forgotten.
- `uniform`: the plain mean of the weights at regular steps, from a given step on (Izmailov et al., 2018, "Averaging
  Weights Leads to Wider Optima and Better Generalization", arXiv:1803.05407, algorithm 1).

The average is taken of the fp32 weights that the optimizer holds, by their names, and knows nothing else of it.
Training continues from the weights themselves; the average is only read. A low-rank adapter's thin
matrices are averaged one by one; their product is then near the average of the products, and not equal to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from luthier.core.plan import AveragePlan
from luthier.ml.training.sharding import shares

_PREFIX: Final = "average."


class WeightAverage:
    """The average so far.

    Args:
        plan: None for no average, so that nothing is held and nothing changes.
    """

    def __init__(self, plan: AveragePlan | None) -> None:
        self.plan = plan
        self.weights: dict[str, Tensor] = {}
        """The averaged weights by parameter name; empty as long as nothing has been averaged."""

    @torch.no_grad()
    def after_step(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights after update number `step` (from 1), as the optimizer holds them."""
        share = self._share(step)
        if share is None:
            return
        if not self.weights:
            self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
            return
        new = [weights[name].detach() for name in self.weights]
        # m += share * (w - m), in fp32, by one kernel for all parameters.
        torch._foreach_lerp_(shares(list(self.weights.values())), shares(new), share)

    def _share(self, step: int) -> float | None:
        """What the new weights count in the average, the rest being the average before; None: nothing is averaged."""
        plan = self.plan
        if plan is None:
            return None
        if plan.kind == "ema":
            assert plan.decay is not None
            return 1.0 - min(plan.decay, (1.0 + step) / (10.0 + step))
        assert plan.from_step is not None
        assert plan.every_steps is not None
        since = step - plan.from_step
        if since < 0 or since % plan.every_steps:
            return None
        # The n-th of n averaged weights counts 1 / n: this is the running mean.
        return 1.0 / (since // plan.every_steps + 1)

    @contextmanager
    @torch.no_grad()
    def shown_in(self, module: nn.Module) -> Iterator[None]:
        """The model with the averaged weights in place of its own, which come back to the bit; in its own precision."""
        own: dict[str, Tensor] = {}
        parameters = dict(module.named_parameters()) if self.weights else {}
        try:
            for name, weight in self.weights.items():
                # Values are copied, tensors are not exchanged: optimizer and compiled layers hold these very tensors.
                own[name] = parameters[name].detach().clone()
                parameters[name].detach().copy_(weight)
            yield
        finally:
            for name, weight in own.items():
                parameters[name].detach().copy_(weight)

    def state(self) -> dict[str, Tensor]:
        """All that a resume needs beside the number of the step, by names that no method uses."""
        return {f"{_PREFIX}{name}": weight for name, weight in self.weights.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Load a state that `state` returned; other entries are ignored.

        Args:
            weights: those that are averaged.
        """
        kept = averages_in(state)
        self.weights = {name: torch.empty_like(weights[name]).copy_(kept[name]) for name in weights if name in kept}


def averages_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights by parameter name in what a checkpoint holds beside weights and moments; may be none."""
    return {name.removeprefix(_PREFIX): kept for name, kept in state.items() if name.startswith(_PREFIX)}


def all_but_averages(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint holds of the method alone."""
    return {name: kept for name, kept in state.items() if not name.startswith(_PREFIX)}
