"""AdamW: Loshchilov & Hutter, 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101, algorithm 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from luthier.core.plan import OptimizerPlan
from luthier.ml.training.optimizers.protocol import Trained, in_groups


class AdamW:
    """torch's own AdamW in one pass over memory; two moments a parameter, as wide as the masters."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:
        self.trained = tuple(trained)
        self.adam = (
            torch.optim.AdamW(in_groups(trained), betas=(plan.beta1, plan.beta2), eps=plan.epsilon, fused=True)
            if trained
            else None
        )

    def update(self, rate: float) -> None:
        """One step."""
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
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:
        """Both moments, and the count that corrects their bias."""
        for one in self.trained:
            assert self.adam is not None
            self.adam.state[one.master] = {
                # where the weights are: the fused update takes nothing from elsewhere
                "step": torch.tensor(float(num_steps_taken), device=one.master.device),
                "exp_avg": state[f"first.{one.name}"].to(one.master.device, copy=True),
                "exp_avg_sq": state[f"second.{one.name}"].to(one.master.device, copy=True),
            }
