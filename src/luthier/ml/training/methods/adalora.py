"""AdaLoRA: one budget of ranks for all matrices, moved during training to where it matters most.

Zhang et al., 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv:2303.10512. Each
update is B diag(E) A (section 3.1), with A and B held near orthogonal by a penalty. Which triplets (a row of A, an
entry of E, a column of B) are switched off is decided by `rank_budget`. What comes out is a plain LoRA whose matrices
have different ranks: E goes into A, and what is switched off is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from luthier.core.plan import MethodPlan
from luthier.ml.training.methods.lora import ADAPTER, AdaptedForward, AdaptedLayer, Lora
from luthier.ml.training.methods.peft_targets import meant_for_peft
from luthier.ml.training.methods.rank_budget import RankBudget, Triplets

_INITIAL_DEVIATION: Final = 0.02


class _TripletForward(AdaptedForward):
    """The low-rank product with each of its ranks weighed by a trained singular value."""

    def __init__(self, layer: AdaptedLayer, probability: float, values: Tensor) -> None:
        super().__init__(layer, probability)
        self.values = values

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a * self.values, self.b


class AdaLora(Lora):
    """LoRA with trained singular values, of which the least important are switched off on the way."""

    def __init__(self, plan: MethodPlan) -> None:
        super().__init__(plan)
        self.forwards: dict[str, _TripletForward] = {}
        self.budget = RankBudget(plan)

    def forward_of(self, name: str, layer: AdaptedLayer) -> AdaptedForward:
        """Gives a layer its singular values, zero at the start; A and B begin small and random."""
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        values = nn.Parameter(a.new_zeros(a.shape[0], 1))
        layer.lora_E = nn.ParameterDict({ADAPTER: values})
        for thin in (a, b):
            nn.init.normal_(thin, std=_INITIAL_DEVIATION)
        self.forwards[name] = _TripletForward(layer, self.plan.dropout, values)
        self.budget.add(name, a.shape[0], a.device)
        return self.forwards[name]

    @torch.no_grad()
    def before_step(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Adds the gradient of the orthogonality penalty (equation 4), in fp32, once a step.

        The penalty is the mean of |A A^T - I| and |B^T B - I| (Frobenius norms) over all thin matrices, as in the
        authors' code; its gradient by A is 2 (A A^T - I) A / |A A^T - I|. It is no part of the loss that is reported.
        """
        thin = [name for name in weights if ".lora_A." in name or ".lora_B." in name]
        weight = float(self.plan.orthogonality_weight or 0.0) / max(1, len(thin))
        if not weight:
            return
        for name in thin:
            rows = weights[name] if ".lora_A." in name else weights[name].t()
            excess = rows @ rows.t()  # [rank, rank]
            excess.diagonal().sub_(1.0)  # A A^T - I
            norm = torch.linalg.matrix_norm(excess)
            if norm > 0:
                slope = (excess @ rows).mul_(2.0 * weight / norm)
                gradients[name].add_(slope if ".lora_A." in name else slope.t())

    @torch.no_grad()
    def after_step(self, step: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Moves the budget (algorithm 1) and switches off what it leaves out."""
        self.budget.after_step(step, self._triplets(weights), self._triplets(gradients))

    def may_be_outcome(self, step: int) -> bool:
        """Only once the ranks are down to the target: earlier weights would not keep what the recipe asks for."""
        return self.budget.is_spent(step)

    def state(self) -> dict[str, Tensor]:
        """Importance and the ranks that are left."""
        return self.budget.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up importance and ranks."""
        self.budget.load_state(state)

    def ranks(self) -> dict[str, int]:
        """How many triplets of each matrix are left, by module name of the base."""
        return {name.removeprefix("base_model.model."): int(kept.sum()) for name, kept in self.budget.kept.items()}

    def export(self, model: PeftModel) -> tuple[dict[str, Tensor], LoraConfig]:
        """A plain LoRA with a rank of its own for each matrix, and the same scale for all.

        A diag(E) is rounded as it is in training, so that the adapter computes what was trained.
        """
        tensors, ranks = {}, {}
        for name, forward in self.forwards.items():
            kept = self.budget.kept[name]
            if not kept.any():
                continue
            a, b = forward.factors()  # [rank, in] with the singular values in it, [out, rank]
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a[kept], b[:, kept]
            ranks[name.removeprefix("base_model.model.")] = int(kept.sum())
        scale = self.plan.alpha / self.plan.rank
        config = self.config()
        config.r = max(ranks.values())
        # PEFT scales by alpha / r: alpha follows each rank, so that the scale stays that of training.
        config.lora_alpha = scale * config.r
        config.target_modules = set(ranks)
        config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != config.r}
        config.alpha_pattern = {name: scale * rank for name, rank in config.rank_pattern.items()}
        return tensors, meant_for_peft(model.get_base_model(), config)

    def _triplets(self, by_name: Mapping[str, Tensor]) -> dict[str, Triplets]:
        """Tensors by parameter name -> A, B and E of each adapted module."""
        return {
            name: Triplets(
                a=by_name[f"{name}.lora_A.{ADAPTER}.weight"],
                b=by_name[f"{name}.lora_B.{ADAPTER}.weight"],
                e=by_name[f"{name}.lora_E.{ADAPTER}"],
            )
            for name in self.forwards
        }
