"""Which ranks AdaLoRA keeps: importance of each triplet, smoothed over steps, against a budget that falls.

Zhang et al., 2023, arXiv:2303.10512. Importance of an entry: sensitivity |w dL/dw| (equation 8), smoothed
(equation 9), times its uncertainty, the smoothed distance from the smoothed (equations 10 and 11). Importance of a
triplet: that of its singular value and the means over its row of A and its column of B (equation 7). The budget
falls by a cubic curve (equation 12).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from luthier.core.plan import MethodPlan


class Triplets(NamedTuple):
    """One matrix's update: A [rank, in], B [out, rank], singular values E [rank, 1]; or the gradients of these."""

    a: Tensor
    b: Tensor
    e: Tensor


class RankBudget:
    """The state of the allocation.

    Attributes:
        kept: for each matrix which of its triplets are left, bool [rank].
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
        """Take a matrix into the budget, all of its triplets on."""
        self.kept[name] = torch.ones(rank, dtype=torch.bool, device=device)

    def num_at(self, step: int) -> int:
        """How many triplets may be on after a step, over all matrices (equation 12)."""
        initial = sum(kept.numel() for kept in self.kept.values())
        target = self.target_rank * len(self.kept)
        if step <= self.warmup_steps:
            return initial
        if step >= self.last_step:
            return target
        left = 1 - (step - self.warmup_steps) / (self.last_step - self.warmup_steps)
        return int((initial - target) * left**3 + target)

    def is_spent(self, step: int) -> bool:
        """Whether the ranks stay as they are from that step on."""
        return step >= self.last_step

    def after_step(self, step: int, weights: Mapping[str, Triplets], gradients: Mapping[str, Triplets]) -> None:
        """Move importance on, decide every few steps until the last, and switch off what is not kept.

        Between two decisions before the last a triplet that was switched off may learn its way back, as in algorithm 1.
        """
        if step <= self.last_step:
            # the authors' code decides for the last time by the importance of the step before
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
                # Equation 10 takes the distance from the average that has just moved.
                distance = now.sub_(smoothed).abs_()
                self.uncertain[key].mul_(self.uncertainty).add_(distance, alpha=1 - self.uncertainty)

    def _decide(self, num_kept: int) -> None:
        """Keep the most important triplets over all matrices; of equals, those that come first."""
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
