"""What objectives on preference pairs share: a unit is a chosen and a rejected row, and each pair counts once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.plan import ObjectivePlan
from luthier.core.ports import Progress
from luthier.ml.training.log_probabilities import summed_by_row
from luthier.ml.training.objective_protocol import NO_TOOLS, Losses, PlainObjective, Tools, Unit, rows_of
from luthier.ml.training.objectives.reference import Reference, reference_of

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch, TrainableModel


@dataclass(frozen=True, slots=True)
class PairSums:
    """Sums over the completions of P pairs, each [P]. Log-probabilities in nats; lengths: learned tokens."""

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @classmethod
    def of(cls, sums: Tensor, learned: Sequence[int]) -> PairSums:
        """From what rows give in order: chosen, rejected, chosen, rejected..."""
        lengths = torch.tensor(learned, dtype=sums.dtype, device=sums.device)
        # Rows alternate: even ones are chosen, odd ones rejected.
        return cls(sums[0::2], sums[1::2], lengths[0::2], lengths[1::2])

    def means(self) -> tuple[Tensor, Tensor]:
        """Log-probability a token of the chosen and of the rejected completions."""
        return self.chosen / self.chosen_lengths, self.rejected / self.rejected_lengths


def smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid(logits), as if a share of the labels were the wrong way round."""
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def reward_measures(chosen: Tensor, rejected: Tensor, sums: PairSums) -> dict[str, Tensor]:
    """What is shown of a batch, summed over its pairs: implicit rewards, and log-probabilities of whole completions."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "reward_accuracy": (chosen > rejected).sum(),
        "reward_margin": (chosen - rejected).sum(),
        "chosen_reward": chosen.sum(),
        "rejected_reward": rejected.sum(),
        "chosen_log_probability": sums.chosen.detach().sum(),
        "rejected_log_probability": sums.rejected.detach().sum(),
    }


class PairObjective(PlainObjective, ABC):
    """Learns from pairs what is preferred. The loss is a mean over pairs."""

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        super().__init__(plan, tools)
        assert plan.beta is not None
        self.beta = plan.beta

    def weight(self, units: Sequence[Unit]) -> float:
        """How many pairs they are."""
        return float(len(units))

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed loss of the pairs and their rewards."""
        sums = PairSums.of(summed_by_row(model.log_probabilities(batch), batch.learned), batch.learned)
        losses, chosen, rejected = self.of_pairs(sums, units)
        return Losses(losses.sum(), reward_measures(chosen, rejected, sums))

    @abstractmethod
    def of_pairs(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of the pairs and the rewards of chosen and rejected, each [P]."""


class AgainstReference(PairObjective):
    """A pair objective that asks how much more likely a completion has become than it was at the start."""

    reference: Reference

    def prepare(self, model: TrainableModel, units: Sequence[Unit], folder: Path, progress: Progress) -> None:
        """Compute the reference of all rows, or read it from the run's folder."""
        self.reference = reference_of(model, units, folder, progress)

    def log_ratios(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor]:
        """log(p / p at the start) of chosen and rejected completions, each [P]."""
        reference = self.reference.of(rows_of(units), like=sums.chosen)
        return sums.chosen - reference[0::2], sums.rejected - reference[1::2]
