"""AdaLoRA: one rank budget for all matrices, reallocated during training to where it matters most.

Each update is B diag(E) A (section 3.1), with a penalty that keeps A and B nearly orthogonal. `RankBudget` decides
which triplets (a row of A, an entry of E, a column of B) are switched off. Importance of an entry: sensitivity |w
dL/dw| (equation 8), smoothed (equation 9), times its uncertainty, the smoothed distance from the smoothed (equations 10
and 11). Importance of a triplet: that of its singular value and the means over its row of A and its column of B
(equation 7). The budget falls by a cubic curve (equation 12). The result is a plain LoRA whose matrices have different
ranks.

Sources: Zhang et al., 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
arXiv:2303.10512.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from luthier.core.plan import MethodPlan
from luthier.ml.training.methods.lora import ADAPTER, AdaptedForward, AdaptedLayer, Lora
from luthier.ml.training.methods.peft_adapter import PEFT_PREFIX, meant_for_peft


class Triplets(NamedTuple):
    """One matrix's update: A [rank, in], B [out, rank], singular values E [rank, 1]; or the gradients of these.

    Attributes:
        a: [rank, in].
        b: [out, rank].
        e: [rank, 1].
    """

    a: Tensor
    b: Tensor
    e: Tensor


class RankBudget:
    """The state of the allocation.

    Attributes:
        kept: for each matrix, which of its triplets are active, bool [rank].
    """

    def __init__(self, plan: MethodPlan) -> None:
        self.warmup_steps = plan.warmup_steps or 0
        self.last_step = plan.last_reallocation_step or 0
        self.every_steps = plan.reallocate_every_steps or 1
        self.target_rank = plan.target_rank or plan.rank
        self.sensitivity = plan.sensitivity_smoothing or 0.0
        self.uncertainty = plan.uncertainty_smoothing or 0.0
        self.kept: dict[str, Tensor] = {}
        self.smoothed: dict[str, Tensor] = {}
        self.uncertain: dict[str, Tensor] = {}

    def add(self, name: str, rank: int, device: torch.device) -> None:
        """Add a matrix to the budget, with all of its triplets active.

        Args:
            name: of the matrix.
            rank: triplets that it begins with.
            device: where its importance is kept.
        """
        self.kept[name] = torch.ones(rank, dtype=torch.bool, device=device)

    def num_at(self, step: int) -> int:
        """The number of active triplets allowed after a step, over all matrices (equation 12)."""
        initial = sum(kept.numel() for kept in self.kept.values())
        target = self.target_rank * len(self.kept)
        if step <= self.warmup_steps:
            return initial
        if step >= self.last_step:
            return target
        left = 1 - (step - self.warmup_steps) / (self.last_step - self.warmup_steps)
        return int((initial - target) * left**3 + target)

    def is_spent(self, step: int) -> bool:
        """Whether the ranks are final from that step on."""
        return step >= self.last_step

    def after_step(self, step: int, weights: Mapping[str, Triplets], gradients: Mapping[str, Triplets]) -> None:
        """Update the importance, reallocate every few steps, and switch off the triplets that are not kept.

        Between two reallocations a triplet that was switched off may recover, as in algorithm 1.

        Args:
            step: number of the update, from 1.
            weights: by name of the matrix, after the update.
            gradients: by name of the matrix, of that update.
        """
        if step <= self.last_step:
            # the authors' code makes the last decision by the importance of the previous step
            if step < self.last_step or not self.smoothed:
                self._move_importance(weights, gradients)
            decides = step > self.warmup_steps and step % self.every_steps == 0
            if not decides and step < self.last_step:
                return
            self._decide(self.num_at(step))
        if step >= self.last_step:
            self.smoothed.clear()
            self.uncertain.clear()
        for name, kept in self.kept.items():
            weights[name].e.masked_fill_(~kept[:, None], 0.0)

    def state(self) -> dict[str, Tensor]:
        """Ranks and importance by name."""
        parts = (("kept", self.kept), ("smoothed", self.smoothed), ("uncertain", self.uncertain))
        return {f"{part}.{name}": tensor for part, found in parts for name, tensor in found.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned."""
        for part, found in (("kept", self.kept), ("smoothed", self.smoothed), ("uncertain", self.uncertain)):
            device = next(iter(self.kept.values())).device
            loaded = {n.removeprefix(f"{part}."): t.to(device) for n, t in state.items() if n.startswith(f"{part}.")}
            # `kept` has a mask for every matrix from the start; the averages are empty once the ranks are final.
            if part != "kept":
                found.clear()
            found.update(loaded)

    def _move_importance(self, weights: Mapping[str, Triplets], gradients: Mapping[str, Triplets]) -> None:
        for name, found in weights.items():
            for part, weight, gradient in zip("abe", found, gradients[name], strict=True):
                key, now = f"{part}.{name}", (weight * gradient).abs_()
                if key not in self.smoothed:
                    self.smoothed[key], self.uncertain[key] = torch.zeros_like(now), torch.zeros_like(now)
                smoothed = self.smoothed[key].mul_(self.sensitivity).add_(now, alpha=1 - self.sensitivity)
                # Equation 10 uses the distance from the updated average.
                distance = now.sub_(smoothed).abs_()
                self.uncertain[key].mul_(self.uncertainty).add_(distance, alpha=1 - self.uncertainty)

    def _decide(self, num_kept: int) -> None:
        """Keep the most important triplets over all matrices; ties go to those that come first."""
        scores = torch.cat([self._scores(name) for name in self.kept])  # [sum of ranks]
        order = torch.argsort(scores, descending=True, stable=True)
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[order[:num_kept]] = True
        parts = kept.split([mask.numel() for mask in self.kept.values()])
        self.kept = {name: part.clone() for name, part in zip(self.kept, parts, strict=True)}

    def _scores(self, name: str) -> Tensor:
        """Importance [rank] of the triplets of a matrix."""
        a, b, e = (self.smoothed[f"{part}.{name}"] * self.uncertain[f"{part}.{name}"] for part in "abe")
        return e.flatten() + a.mean(1) + b.mean(0)


_INITIAL_DEVIATION: Final = 0.02


class _TripletForward(AdaptedForward):
    """The low-rank product with each rank weighted by a trained singular value."""

    def __init__(self, layer: AdaptedLayer, probability: float, values: Tensor) -> None:
        super().__init__(layer, probability)
        self.values = values

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a * self.values, self.b


class AdaLora(Lora):
    """LoRA with trained singular values, the least important of which are switched off during training."""

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
        authors' code; its gradient by A is 2 (A A^T - I) A / |A A^T - I|. It is not part of the reported loss.
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
        """Reallocates the budget (algorithm 1) and switches off the triplets outside it."""
        self.budget.after_step(step, self._triplets(weights), self._triplets(gradients))

    def may_be_outcome(self, step: int) -> bool:
        """Only once the ranks have reached the target: earlier weights exceed the rank that the recipe sets."""
        return self.budget.is_spent(step)

    def state(self) -> dict[str, Tensor]:
        """Importance and active ranks."""
        return self.budget.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore importance and active ranks."""
        self.budget.load_state(state)

    def ranks(self) -> dict[str, int]:
        """The number of active triplets of each matrix, by module name of the base."""
        return {name.removeprefix(PEFT_PREFIX): int(kept.sum()) for name, kept in self.budget.kept.items()}

    def export(self, model: PeftModel) -> tuple[dict[str, Tensor], LoraConfig]:
        """A plain LoRA with an individual rank for each matrix and the same scale for all.

        A diag(E) is rounded as it is in training, so that the adapter computes what was trained.
        """
        tensors, ranks = {}, {}
        for name, forward in self.forwards.items():
            kept = self.budget.kept[name]
            if not kept.any():
                continue
            a, b = forward.factors()  # [rank, in] with the singular values in it, [out, rank]
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a[kept], b[:, kept]
            ranks[name.removeprefix(PEFT_PREFIX)] = int(kept.sum())
        scale = self.plan.alpha / self.plan.rank
        config = self.config()
        config.r = max(ranks.values())
        # PEFT scales by alpha / r: alpha follows each rank, so that the scale is that of training.
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
