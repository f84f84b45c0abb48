"""KTO: single completions, each wanted or not, against the model at the start and an estimate of how far it has moved.

Ethayarajh et al., 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv:2402.01306, equation 8. The
estimate z0 is the mean log-ratio over prompts with the completion of another example (section 4.1), at least 0, and
taken as it is: no gradient goes through it. Here it is taken over the whole global batch. Each prompt keeps its
partner, the completion of the example before it, through the run, so that its reference, too, is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import ObjectivePlan
from luthier.core.ports import Progress
from luthier.ml.training.log_probabilities import summed_by_row
from luthier.ml.training.objective_protocol import NO_TOOLS, Losses, PlainObjective, Tools, Unit, rows_of
from luthier.ml.training.objectives.reference import Reference, cut, key_of, reference_of, summed_log_probabilities

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch, TrainableModel


class Kto(PlainObjective):
    """lambda (1 - sigmoid(beta (h - z0))) for what is wanted, lambda (1 - sigmoid(beta (z0 - h))) for what is not."""

    reference: Reference

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        super().__init__(plan, tools)
        assert plan.beta is not None
        self.beta = plan.beta
        self._partners: dict[bytes, TokenisedExample] = {}
        self._distance = 0.0
        self._shares = (1.0, 1.0)

    def prepare(self, model: TrainableModel, units: Sequence[Unit], folder: Path, progress: Progress) -> None:
        """Give each prompt its partner, and compute the reference of all rows and of those with partners."""
        rows = rows_of(units)
        # Each row is paired with the one before it, the first with the last.
        for before, row in zip([rows[-1], *rows[:-1]], rows, strict=True):
            self._partners[key_of(row)] = mismatched(row, before, model.context_length_tokens)
        partners: list[Unit] = [(partner,) for partner in self._partners.values()]
        self.reference = reference_of(model, [*units, *partners], folder, progress)

    def look(self, model: TrainableModel, micro_batches: Sequence[Sequence[Unit]]) -> None:
        """Estimate z0 over all units, and count which of them are wanted."""
        rows = [row for units in micro_batches for row in rows_of(units)]
        partners: list[Unit] = [(self._partners[key_of(row)],) for row in rows]
        was_training = model.module.training
        model.module.eval()
        total = 0.0
        for indices in cut(model, partners):
            chosen = [partners[i] for i in indices]
            found = summed_log_probabilities(model, chosen)
            total += float((found - self.reference.of(rows_of(chosen), like=found)).sum())
        model.module.train(was_training)
        # A plain float: no gradient flows through z0.
        self._distance = max(0.0, total / len(rows))
        num_wanted = sum(row.is_wanted is True for row in rows)
        self._shares = num_wanted / len(rows), (len(rows) - num_wanted) / len(rows)

    def weight(self, units: Sequence[Unit]) -> float:
        """How many completions they are."""
        return float(len(units))

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed loss of the completions, z0, and the rewards of what is wanted and of what is not."""
        rows = rows_of(units)
        sums = summed_by_row(model.log_probabilities(batch), batch.learned)  # [rows]
        ratios = sums - self.reference.of(rows, like=sums)
        is_wanted = torch.tensor([row.is_wanted is True for row in rows], device=sums.device)
        gains = torch.where(is_wanted, 1.0, -1.0) * (ratios - self._distance)
        values = torch.where(is_wanted, self.plan.desirable_weight or 0.0, self.plan.undesirable_weight or 0.0)
        losses = values * (1 - torch.sigmoid(self.beta * gains))
        return Losses(losses.sum(), self._measures(self.beta * ratios.detach(), gains.detach(), is_wanted))

    def _measures(self, rewards: Tensor, gains: Tensor, is_wanted: Tensor) -> dict[str, Tensor]:
        """Sums which, divided by the number of completions in the whole batch, are means over those they speak of."""
        wanted, other = self._shares
        measures = {
            "reward_accuracy": (gains > 0).sum(),
            "kl": rewards.new_full((), self._distance * len(rewards)),
        }
        if wanted:
            measures["chosen_reward"] = (rewards * is_wanted).sum() / wanted
        if other:
            measures["rejected_reward"] = (rewards * ~is_wanted).sum() / other
        return measures


def mismatched(row: TokenisedExample, other: TokenisedExample, most_tokens: int) -> TokenisedExample:
    """The prompt of one row with the completion of another, cut at the end where it is longer than a context."""
    cut_at, start = row.loss_mask.find(1), other.loss_mask.find(1)
    ids = (row.input_ids[:cut_at] + other.input_ids[start:])[:most_tokens]
    mask = (bytes(cut_at) + other.loss_mask[start:])[:most_tokens]
    return TokenisedExample(f"{row.id} with the completion of {other.id}", ids, mask)
