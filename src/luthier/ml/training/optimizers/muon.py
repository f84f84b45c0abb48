"""Muon: a matrix moves by its momentum with all singular values brought near one; the rest moves by AdamW.

Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon):
Nesterov momentum, then five Newton-Schulz iterations in bf16. Embeddings, an untied head, vectors and stacks of
matrices (experts) are AdamW's. The update is scaled by 0.2 sqrt(larger side) (Liu et al., 2025, "Muon is Scalable for
LLM Training", arXiv:2502.16982, equation 4), which gives it the size that AdamW's has in long training: one learning
rate and one weight decay serve both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from luthier.core.plan import OptimizerPlan
from luthier.ml.training.optimizers.adamw import AdamW
from luthier.ml.training.optimizers.protocol import Trained, in_groups


class Muon:
    """torch's own Muon for matrices of the layers, AdamW for all else."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None:
        self.matrices = tuple(x for x in trained if x.place == "matrix" and x.master.dim() == 2)
        self.rest = AdamW([x for x in trained if x not in self.matrices], plan)
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
            momentum = state[f"momentum.{one.name}"].to(one.master.device, copy=True)
            self.muon.state[one.master] = {"momentum_buffer": momentum}
